"""The filter by name and by hand-computed boxes; NMS by hand."""

from __future__ import annotations

import pytest
import torch

from data.proposals.box_filter import BoxFilter, filter_boxes, parse_filter, without_overlaps


def test_filter_names() -> None:
    assert parse_filter("ratio3size0008") == BoxFilter(3.0, 0.0, 0.8, 32.0) == BoxFilter()
    assert parse_filter("ratio2.5size0110", min_side=5) == BoxFilter(2.5, 0.1, 1.0, 5)
    assert parse_filter("none") is None


@pytest.mark.parametrize("text", ["", "ratio3", "ratio0size0008", "ratio3size0800", "ratio3size8"])
def test_bad_filter_names_the_option_and_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="--filter.*ratio3size0008"):
        parse_filter(text)


def test_filter_by_hand_at_coco_scale() -> None:
    boxes = torch.tensor(
        [
            [0.0, 0, 32, 32],  # just large enough
            [0, 0, 31, 40],  # too narrow
            [0, 0, 40, 31],  # too flat
            [0, 0, 120, 40],  # exactly 3 : 1
            [0, 0, 121, 40],  # wider than 3 : 1
            [0, 0, 40, 121],  # higher than 3 : 1
            [0, 0, 512, 384],  # exactly 0.8 of both sides
            [0, 0, 520, 390],  # larger
        ]
    )
    kept = filter_boxes(boxes, 480, 640, BoxFilter())
    assert kept.tolist() == boxes[[0, 3, 6]].tolist()


def test_least_side_follows_the_size_of_the_image() -> None:
    boxes = torch.tensor([[0.0, 0, 16, 16], [0, 0, 15, 15]])
    assert len(filter_boxes(boxes, 240, 320, BoxFilter())) == 1  # 32 * 320 / 640 = 16
    assert len(filter_boxes(boxes, 640, 640, BoxFilter())) == 0
    assert len(filter_boxes(boxes, 240, 320, BoxFilter(min_side=0))) == 2


def test_least_extent() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 9, 9]])
    kept = filter_boxes(boxes, 100, 100, BoxFilter(min_extent=0.1, min_side=0))
    assert kept.tolist() == [[0, 0, 10, 10]]


def test_nms_by_hand() -> None:
    boxes = torch.tensor(
        [
            [0.0, 0, 10, 10],
            [0, 0, 10, 6],  # IoU 0.6 with the first
            [0, 0, 10, 4],  # IoU 0.4 with the first; 0.67 with the second, which is gone
            [20, 20, 30, 30],
            [0, 0, 10, 5],  # IoU 0.5 with the first: not more; 0.8 with the third
        ]
    )
    assert without_overlaps(boxes, 0.5).tolist() == [0, 2, 3]
    assert without_overlaps(boxes, 1.0).tolist() == [0, 1, 2, 3, 4]
    assert without_overlaps(boxes[:0], 0.5).shape == (0,)
