"""The last lines of a run, by hand."""

from __future__ import annotations

import re
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from data.proposals.report import print_recall, print_summary


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


def test_summary(capsys: pytest.CaptureFixture[str]) -> None:
    print_summary(Path("p.json"), 1200, 60_300, time.perf_counter() - 75)
    words = r"1,200 images, 60,300 boxes \(50\.2 per image\) in (.+) s: p.json\n"
    found = re.fullmatch(words, capsys.readouterr().out)
    assert found is not None
    assert float(found[1]) >= 75
