"""Records come back as they were put in, and hold no tensor that a loader process would be sent."""

from __future__ import annotations

import pytest
import torch

from data.records import Record, Records
from tests.helpers.without_tensors import sent


def record(number, boxes):
    return Record(
        image_id=f"id {number}",
        file_name=f"{number}.png",
        height=10 + number,
        width=20,
        boxes=torch.arange(4.0 * boxes).reshape(-1, 4) + number,
        labels=torch.arange(boxes) + 10 * number,
    )


GIVEN = [record(number, boxes) for number, boxes in enumerate((2, 0, 3, 0))]


def assert_same(ours, given):
    assert len(ours) == len(given)
    for mine, its in zip(ours, given, strict=True):
        for name in ("image_id", "file_name", "height", "width"):
            assert getattr(mine, name) == getattr(its, name)
        assert (mine.boxes.dtype, mine.labels.dtype) == (torch.float32, torch.int64)
        assert mine.boxes.shape == its.boxes.shape
        assert torch.equal(mine.boxes, its.boxes)
        assert torch.equal(mine.labels, its.labels)


def test_records_come_back():
    records = Records(iter(GIVEN))
    assert_same(records, GIVEN)
    assert_same([records[2], records[-1]], [GIVEN[2], GIVEN[3]])
    assert_same(records[1:3], GIVEN[1:3])
    assert_same(list(reversed(records)), GIVEN[::-1])
    assert records.box_counts.tolist() == [2, 0, 3, 0]
    assert records.sizes == [(10, 20), (11, 20), (12, 20), (13, 20)]
    assert records.file_names == ["0.png", "1.png", "2.png", "3.png"]
    assert (records.boxes.shape, records.labels.tolist()) == ((5, 4), [0, 1, 20, 21, 22])


@pytest.mark.parametrize("index", [4, -5, slice("a")])
def test_wrong_indices_are_refused(index):
    with pytest.raises((IndexError, TypeError)):
        Records(GIVEN)[index]


def test_no_records():
    records = Records([])
    assert list(records) == []
    assert records.boxes.shape == (0, 4)
    assert records.box_counts.tolist() == []


def test_they_are_sent_without_tensors():
    assert_same(sent(Records(GIVEN)), GIVEN)
