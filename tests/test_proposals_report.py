"""The last lines of a run, by hand."""

from __future__ import annotations

import re
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from data.masks import encode
from data.proposals.report import print_mask_recall, print_recall, print_summary
from data.proposals.sources import ObjectMasks


def test_recall_is_of_the_images_in_both(capsys: pytest.CaptureFixture[str]) -> None:
    truth = {
        "a": torch.tensor([[0.0, 0, 40, 40], [50, 50, 60, 60]]),
        "not searched": torch.tensor([[0.0, 0, 9, 9]]),
    }
    boxes = {"a": np.array([[0.0, 0, 40, 20], [0, 0, 5, 5]]), "not labelled": np.zeros((7, 4))}
    print_recall(truth, list(boxes), boxes.__getitem__)
    assert capsys.readouterr().out.splitlines() == [
        "2 objects: recall at IoU 0.5 50.0 %, mean best IoU 0.250",
        "1 objects larger than 32 x 32 px: recall at IoU 0.5 100.0 %, mean best IoU 0.500",
        "2.0 boxes per image, 1 image",
    ]


def rectangle(left: int, top: int, right: int, bottom: int) -> bytes:
    """The mask of a rectangle in an image of 60 x 40 pixels."""
    return encode([[left, top, right, top, right, bottom, left, bottom]], 40, 60)


def test_mask_recall(capsys: pytest.CaptureFixture[str]) -> None:
    objects = [rectangle(0, 0, 20, 20), rectangle(30, 0, 40, 40), b""]
    truth = {"a": ObjectMasks(objects, (40, 60)), "not searched": ObjectMasks(objects, (40, 60))}
    masks = {"a": [rectangle(0, 0, 20, 12), rectangle(35, 0, 40, 20)], "not labelled": None}
    print_mask_recall(truth, list(masks), masks.__getitem__)  # IoU 0.6 and 1/4
    assert capsys.readouterr().out.splitlines() == [
        "2 objects with a mask: recall at mask IoU 0.5 50.0 %, mean best mask IoU 0.425"
    ]
    print_mask_recall({}, list(masks), masks.__getitem__)
    assert capsys.readouterr().out == ""


def test_summary(capsys: pytest.CaptureFixture[str]) -> None:
    print_summary(Path("p.json"), 1200, 60_300, time.perf_counter() - 75)
    words = r"1,200 images, 60,300 boxes \(50\.2 per image\) in (.+) s: p.json\n"
    found = re.fullmatch(words, capsys.readouterr().out)
    assert found is not None
    assert float(found[1]) >= 75
