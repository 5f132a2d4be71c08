"""Records are made from the arrays of a packed file, one by one and many at a time."""

from __future__ import annotations

import io
import json
import random

import numpy as np
import pytest
import torch

from data import packed_coco
from data.coco_boxes import box_problem, part_inside
from data.coco_json import load_coco
from data.coco_packing import pack_coco
from data.packed_coco import PackedCoco
from data.packed_file import Packed
from data.records import Records
from data.texts import Texts
from tests.helpers.without_tensors import sent

HEIGHT, WIDTH = 48, 64


@pytest.fixture
def path(tmp_path, monkeypatch):
    """A COCO file of 12 images with up to 9 boxes, some of them crowds or unusable."""
    monkeypatch.setattr(packed_coco, "BLOCK", 7)
    rng = random.Random(3)
    content = {
        "images": [
            {"id": f"id {n}", "file_name": f"{n}.png", "height": HEIGHT, "width": WIDTH}
            for n in range(12)
        ],
        "annotations": [
            {
                "id": n,
                "image_id": f"id {rng.randrange(12)}",
                "category_id": rng.choice([3, 5]),
                "bbox": [rng.randint(-9, 70), rng.randint(-9, 50), rng.randint(-2, 60), 17.3],
                "iscrowd": int(rng.random() < 0.2),
            }
            for n in range(60)
        ],
        "categories": [{"id": 3, "name": "a"}, {"id": 5, "name": "b"}],
    }
    (tmp_path / "a.json").write_text(json.dumps(content))
    return tmp_path / "a.json"


def records_of(path, keep_crowd=False, images=range(12)):
    file = io.BytesIO()
    pack_coco(path, file)
    coco = PackedCoco(Packed(file.getvalue()))
    chosen = np.array(images, np.int64)
    names = Texts.of(coco.names[i] for i in images)
    return Records(coco, chosen, names, coco.sizes[chosen], keep_crowd)


def expected_boxes(path, number, keep_crowd):
    """xyxy boxes and labels of an image, one annotation after the other."""
    boxes, labels = [], []
    for entry in load_coco(path)["annotations"]:
        mine = entry["image_id"] == f"id {number}" and (keep_crowd or not entry["iscrowd"])
        if mine and box_problem(entry["bbox"], HEIGHT, WIDTH) is None:
            x, y, w, h = part_inside(entry["bbox"], HEIGHT, WIDTH)
            boxes.append([x, y, x + w, y + h])
            labels.append([3, 5].index(entry["category_id"]))
    return torch.tensor(boxes, dtype=torch.float64).reshape(-1, 4), labels


@pytest.mark.parametrize("keep_crowd", [False, True])
@pytest.mark.parametrize("images", [range(12), [0, 3, 4, 11]])
def test_each_record(path, keep_crowd, images):
    records = records_of(path, keep_crowd, images)
    assert len(records) == len(images)
    total = 0
    for record, number in zip(records, images, strict=True):
        boxes, labels = expected_boxes(path, number, keep_crowd)
        assert (record.image_id, record.file_name) == (f"id {number}", f"{number}.png")
        assert (record.height, record.width) == (HEIGHT, WIDTH)
        assert type(record.height) is int
        assert (record.boxes.dtype, record.labels.dtype) == (torch.float32, torch.int64)
        torch.testing.assert_close(record.boxes.double(), boxes, rtol=1e-6, atol=1e-5)
        assert record.labels.tolist() == labels
        total += len(labels)
    assert 5 < total < 60


@pytest.mark.parametrize("images", [range(12), [0, 3, 4, 11]])
def test_blocks_hold_the_same(path, images):
    records = records_of(path, images=images)
    blocks = list(records.blocks())
    assert len(blocks) > 2
    assert [place for block in blocks for place in block.places] == list(range(len(images)))
    corners = np.concatenate([block.corners for block in blocks])
    assert np.array_equal(corners, torch.cat([record.boxes for record in records]).numpy())
    labels = np.concatenate([block.labels for block in blocks])
    assert np.array_equal(labels, torch.cat([record.labels for record in records]).numpy())
    counts = np.concatenate([block.used_counts for block in blocks])
    assert counts.tolist() == [len(record.boxes) for record in records]


def test_like_a_sequence(path):
    records = records_of(path)
    names = [record.file_name for record in records]
    assert [r.file_name for r in records[1:3]] == names[1:3]
    assert [r.file_name for r in reversed(records)] == names[::-1]
    assert records[-1].file_name == names[-1]
    part = records.among(np.array([2, 5]))
    assert [r.file_name for r in part] == [names[2], names[5]]
    assert torch.equal(part[1].boxes, records[5].boxes)


@pytest.mark.parametrize("index", [12, -13, slice("a")])
def test_wrong_indices_are_refused(path, index):
    with pytest.raises((IndexError, TypeError)):
        records_of(path)[index]


def test_no_records(path):
    records = records_of(path, images=[])
    assert list(records) == []
    assert list(records.blocks()) == []


def test_they_are_sent_without_tensors(path):
    records = records_of(path)
    for mine, its in zip(sent(records), records, strict=True):
        assert mine.file_name == its.file_name
        assert torch.equal(mine.boxes, its.boxes)
