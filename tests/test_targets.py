"""Targets that a detector cannot learn from are refused by its forward; all others pass."""

from __future__ import annotations

import random

import pytest
import torch
from PIL import Image

from data.transforms import Augment
from models import build_detector
from models.targets import check_targets
from tests.helpers.labelled_batch import NOTHING, SIZES, TARGETS, K, batch, target
from tests.helpers.small_detectors import OPTIONS, model_config


@pytest.fixture(scope="module")
def detectors():
    """One of each kind."""
    return {name: build_detector(model_config(name), K) for name in OPTIONS}


def changed(**changes):
    """`TARGETS` with another last target."""
    return [TARGETS[0], {**TARGETS[1], **changes}]


def boxes(*rows):
    return torch.tensor(rows, dtype=torch.float32)


NAN = float("nan")
BAD = {
    "label K": (
        changed(labels=torch.tensor([3])),
        "has the label 3; for 3 classes they are 0 to 2",
    ),
    "label -1": (changed(labels=torch.tensor([-1])), "has the label -1"),
    "xywh": (changed(boxes=boxes([60, 30, 30, 47])), r"box 0, \(60, 30, 30, 47\), has no area"),
    "no width": (changed(boxes=boxes([60, 30, 60, 40])), "has no area"),
    "NaN": (changed(boxes=boxes([60, NAN, 90, 40])), "has no area"),
    "too far right": (
        # Within the padded batch (160 wide), but not within the image.
        changed(boxes=boxes([60, 30, 140, 40])),
        "lies outside its image, which is 130 px wide and 100 px high",
    ),
    "too far down": (changed(boxes=boxes([10, 30, 40, 125])), "lies outside its image"),
    "too far left": (changed(boxes=boxes([-9, 30, 40, 90])), "lies outside its image"),
    "infinite": (changed(boxes=boxes([5, 5, float("inf"), 90])), "lies outside its image"),
    "flat boxes": (changed(boxes=torch.zeros(4)), r"the shape \(4,\) instead of \(M, 4\)"),
    "no boxes, no shape": (
        changed(boxes=torch.tensor([]), labels=torch.tensor([], dtype=torch.int64)),
        r"the shape \(0,\) instead of \(M, 4\); no boxes are torch.zeros\(0, 4\)",
    ),
    "five columns": (changed(boxes=torch.ones(1, 5)), "instead of"),
    "more labels": (changed(labels=torch.zeros(2).long()), r"the shape \(2,\), but there are 1"),
    "one-hot labels": (changed(labels=torch.zeros(1, 3).long()), r"the shape \(1, 3\), but"),
    "labels as floats": (changed(labels=torch.zeros(1)), "labels torch.float32; make boxes"),
    "whole-number boxes": (
        changed(boxes=boxes([60, 30, 90, 77]).long()),
        "boxes are torch.int64, labels torch.int64; make boxes float32 and labels int64",
    ),
    "a list": (changed(labels=[1]), "labels is not a tensor; a target is a dict of boxes, labels"),
    "no labels": ([TARGETS[0], {"boxes": TARGETS[1]["boxes"]}], "labels is not a tensor"),
    "a tensor as target": ([TARGETS[0], TARGETS[1]["boxes"]], "boxes is not a tensor"),
    "other device": (
        changed(boxes=torch.ones(1, 4, device="meta")),
        "boxes is on meta, the images",
    ),
}


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("case", BAD)
def test_every_detector_refuses(detectors, name, case):
    targets, words = BAD[case]
    with pytest.raises(ValueError, match=words) as caught:
        detectors[name](batch(), SIZES, targets)
    message = str(caught.value)
    assert message.startswith("targets[1]: ")
    assert "\n" not in message


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("count", [0, 1, 3])
def test_every_detector_counts_targets(detectors, name, count):
    targets = [TARGETS[0]] * count
    with pytest.raises(ValueError, match=f"{count} targets for 2 images; give one per image"):
        detectors[name](batch(), SIZES, targets)


def test_the_first_bad_box_is_named():
    first = target([[1, 1, 5, 5], [1, 1, 6, 6]], [0, 1])
    second = target([[1, 1, 5, 5], [2, 2, 7, 7], [9, 9, 4, 4], [3, 3, 1, 1]], [0, 1, 2, 0])
    with pytest.raises(ValueError, match=r"targets\[2\]: box 2, \(9, 9, 4, 4\), has no area"):
        check_targets([first, NOTHING[0], second], torch.ones(3, 3, 8, 8), [(9, 9)] * 3, K)


@pytest.mark.parametrize("targets", [TARGETS, NOTHING, [NOTHING[0], TARGETS[1]]])
@pytest.mark.parametrize("sizes", [SIZES, SIZES.tolist()])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_good_targets_pass(targets, sizes, dtype):
    targets = [{**t, "boxes": t["boxes"].to(dtype)} for t in targets]
    check_targets(targets, batch()[: len(targets)], sizes[: len(targets)], K)


def test_boxes_at_the_border_pass_whatever_the_augmentation():
    """Resizing and flipping round: a box that fills its image may then stick out a little."""
    rng = random.Random(0)
    augment = Augment(short_sides=range(20, 90), max_side=120)
    for _ in range(200):
        image = Image.new("RGB", (rng.randint(5, 3000), rng.randint(5, 3000)))
        edge = boxes([0, 0, image.width, image.height], [0, 0, 0.01, image.height])
        tensor, moved = augment(image, edge, rng)
        goal = {"boxes": moved, "labels": torch.tensor([0, 1])}
        check_targets([goal], tensor[None], [tensor.shape[-2:]], 2)
    off_by_one = {"boxes": boxes([-1, -1, 131, 101]), "labels": torch.tensor([0])}
    check_targets([off_by_one], batch()[:1], [(100, 130)], 1)


def test_it_waits_for_the_device_once(monkeypatch):
    """Whatever the number of images; `bool` of a tensor is what waits."""
    asked = []
    original = torch.Tensor.__bool__
    monkeypatch.setattr(torch.Tensor, "__bool__", lambda x: asked.append(1) or original(x))
    for waits in ("item", "tolist", "nonzero"):
        monkeypatch.setattr(torch.Tensor, waits, None)
    check_targets(TARGETS * 8, torch.ones(16, 3, 128, 160), SIZES.repeat(8, 1), K)
    assert len(asked) == 1
