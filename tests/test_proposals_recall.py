"""Recall of proposals, by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from data.proposals.recall import best_mask_iou, measure_recall


def test_recall_by_hand() -> None:
    objects = [
        torch.tensor([[0.0, 0, 100, 10], [200, 0, 210, 10]]),  # 1000 px and 100 px: both small
        torch.tensor([[0.0, 0, 40, 40]]),  # large
        torch.zeros(0, 4),
    ]
    proposals = [
        torch.tensor([[0.0, 0, 50, 10], [0, 0, 10, 10]]),  # IoU 0.5 with the first object
        torch.zeros(0, 4),
        torch.tensor([[0.0, 0, 5, 5]]),
    ]
    report = measure_recall(proposals, objects)
    assert report["objects"] == 3
    assert report["large_objects"] == 1
    assert report["recall"] == pytest.approx(1 / 3)
    assert report["mean_best_iou"] == pytest.approx(0.5 / 3)
    assert report["large_recall"] == report["large_mean_best_iou"] == 0
    assert report["boxes_per_image"] == pytest.approx(1.0)


def test_mask_iou_by_pixels() -> None:
    pixels = np.random.default_rng(0).random((7, 20, 30)) < 0.5
    encoded = [coco_mask.encode(np.asfortranarray(p.astype(np.uint8)))["counts"] for p in pixels]
    expected = [max((a & b).sum() / (a | b).sum() for a in pixels[:4]) for b in pixels[4:]]
    best = best_mask_iou([b"", *encoded[:4]], [*encoded[4:], b""], (20, 30))
    assert best.tolist() == pytest.approx(expected)
    assert best_mask_iou([], encoded[4:], (20, 30)).tolist() == [0, 0, 0]
    assert best_mask_iou([b""], encoded[4:], (20, 30)).tolist() == [0, 0, 0]
    assert best_mask_iou(encoded, [b""], (20, 30)).tolist() == []
