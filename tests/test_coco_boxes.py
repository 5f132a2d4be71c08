"""What is said of many boxes at once is what is said of each."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from data.coco_boxes import MIN_SIDE, ROUNDING, box_problem, judge_boxes, part_inside

HEIGHT, WIDTH = 48, 64
EDGES = [-70, -0.6, -0.5, -0.004, 0, 0.004, 1, 20.25, 47.5, 48, 63.996, 64, 64.4, 64.6, 75, 1e9]


def boxes():
    rng = np.random.default_rng(0)
    mixed = rng.choice(EDGES, (4000, 4))
    drawn = rng.uniform(-10, 80, (2000, 4))
    return np.concatenate([mixed, drawn])


def test_many_boxes_are_judged_like_single_ones():
    xywh = boxes()
    sizes = np.tile([HEIGHT, WIDTH], (len(xywh), 1))
    judged = judge_boxes(xywh, sizes)
    assert judged.corners.dtype == np.float32
    for row, (x, y, w, h) in enumerate(xywh.tolist()):
        problem = box_problem([x, y, w, h], HEIGHT, WIDTH)
        assert judged.usable[row] == (problem is None)
        if problem is None:
            corners = [max(x, 0.0), max(y, 0.0), min(x + w, WIDTH), min(y + h, HEIGHT)]
            assert judged.corners[row].tolist() == torch.tensor(corners).tolist()
        out = max(-x, -y, x + w - WIDTH, y + h - HEIGHT) > ROUNDING
        assert judged.clipped[row] == (out and problem is None)
        inside = 0 <= x < w <= WIDTH and 0 <= y < h <= HEIGHT
        assert judged.like_corners[row] == (
            inside and (x + w > 1.1 * WIDTH or y + h > 1.1 * HEIGHT)
        )
    assert 100 < judged.usable.sum() < len(xywh) - 100
    assert judged.like_corners.any()
    assert 0 < judged.clipped.sum() < judged.usable.sum()


def test_each_box_has_its_own_image():
    xywh = np.array([[0, 0, 10, 10]] * 2, np.float64)
    judged = judge_boxes(xywh, np.array([[5, 8], [20, 20]]))
    assert judged.corners.tolist() == [[0, 0, 8, 5], [0, 0, 10, 10]]


def test_none():
    judged = judge_boxes(np.zeros((0, 4)), np.zeros((0, 2), np.int32))
    assert judged.corners.shape == (0, 4)


@pytest.mark.parametrize(
    ("bbox", "problem"),
    [
        ([0, 0, 0, 5], "has no area"),
        ([64, 0, 5, 5], "lies outside the image of 64 x 48 pixels"),
        ([64 - MIN_SIDE / 2, 0, 5, 5], "has next to no area inside the image"),
        ([60, 40, 50, 50], None),
    ],
)
def test_problems(bbox, problem):
    assert box_problem(bbox, HEIGHT, WIDTH) == problem


def test_of_an_image_of_unknown_size_only_the_area_is_judged():
    assert box_problem([1e6, 0, 5, 5], None, None) is None
    assert box_problem([0, 0, -1, 5], None, None) == "has no area"
    assert part_inside([-5, 0, 10, 10], None, None) == [-5, 0, 10, 10]
