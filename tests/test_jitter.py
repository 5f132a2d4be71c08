"""Large-scale jitter: windows and boxes by hand, and painted boxes and masks that stay on what they
are of."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask

from data.build import DataConfig, SplitConfig, build_train, build_two_views
from data.jitter import ScaleJitter, Window, boxes_inside, cut, draw_window
from data.masks import encode
from data.views import SampleKey


def test_windows_by_hand():
    rng = random.Random(0)
    # Half as large as what fits into 100 x 100: all of it is seen.
    assert draw_window((200, 100), 0.5, 100, rng) == (50, 25, 0, 0, 50, 25)
    assert draw_window((200, 100), 0.001, 100, rng) == (1, 1, 0, 0, 1, 1)
    seen = {draw_window((200, 100), 1.5, 100, rng)[2:] for _ in range(300)}
    assert {window[1] for window in seen} == {0}  # 150 x 75: only the width is cut
    assert {window[0] for window in seen} == set(range(51))
    assert {(w[2] - w[0], w[3] - w[1]) for w in seen} == {(100, 75)}


def test_boxes_by_hand():
    """An image of 100 x 50 is scaled by 2, and 60 x 60 pixels are seen from (80, 30) on."""
    window = Window(200, 100, 80, 30, 140, 90)
    boxes = torch.tensor(
        [
            [50.0, 20, 60, 30],  # inside
            [30.0, 10, 45, 20],  # cut to its corner
            [0.0, 0, 100, 50],  # all around
            [0.0, 0, 40, 50],  # ends where the window begins
            [0.0, 0, 40.4, 50],  # less than a pixel is left
            [80.0, 20, 90, 30],  # beyond
        ]
    )
    inside, kept = boxes_inside(boxes, (100, 50), window)
    assert kept.tolist() == [0, 1, 2]
    assert inside.tolist() == [[20, 10, 40, 30], [0, 0, 10, 10], [0, 0, 60, 60]]
    assert [t.shape for t in boxes_inside(torch.zeros(0, 4), (100, 50), window)] == [(0, 4), (0,)]


def test_a_part_is_as_it_would_be_cut_from_the_whole():
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    window = Window(120, 80, 30, 16, 90, 76)
    whole = image.resize((120, 80), Image.Resampling.BILINEAR)
    found = np.asarray(cut(image, window)).astype(int)
    expected = np.asarray(whole.crop(window[2:])).astype(int)
    # At the rim, pixels outside of the part do not count.
    assert np.abs(found - expected)[2:-2, 2:-2].max() <= 1


def painted():
    """A white rectangle on black, as a picture, its box, and its mask."""
    mask = np.zeros((60, 90), np.uint8)
    mask[3:20, 58:86] = 1
    picture = Image.fromarray(np.repeat(mask[..., None] * 255, 3, axis=2))
    return picture, torch.tensor([[58.0, 3, 86, 20]]), (encode_mask(mask),)


def encode_mask(mask):
    rle = coco_mask.encode(np.asfortranarray(mask))
    return encode({"size": list(mask.shape), "counts": rle["counts"].decode()}, *mask.shape)


def test_painted_boxes_and_masks_stay_on_what_they_are_of():
    picture, boxes, masks = painted()
    jitter = ScaleJitter(max_side=80, flip=0.5, scales=(0.3, 2.5))
    left = 0
    for seed in range(60):
        view = jitter.with_masks(picture, boxes, masks, random.Random(seed))
        assert max(view.image.shape[1:]) <= 80
        white = view.image[0] >= 128
        if not len(view.kept):
            left += 1
            assert white.sum() <= 2 * sum(white.shape)  # less than a pixel along a side
            continue
        rows, columns = white.any(1).nonzero()[:, 0], white.any(0).nonzero()[:, 0]
        seen = torch.tensor([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
        assert (view.boxes[0] - seen).abs().max() <= 1.0
        assert view.masks.shape == (1, *white.shape)
        assert (view.masks[0].bool() != white).float().mean() < 0.02  # rounded at the rims
    assert 0 < left < 30


def test_samples_of_fine_tuning(dataset):
    """Labels leave with their boxes; the same key gives the same sample."""
    config = DataConfig(
        train=SplitConfig(str(dataset / "train"), str(dataset / "train.json")),
        max_side=64,
        scale_jitter=(0.5, 3.0),
    )
    samples = build_train(config, with_masks=True)
    assert isinstance(samples.augment, ScaleJitter)
    whole = {len(samples.coco.records[i].labels) for i in range(len(samples))}
    fewer = 0
    for index in range(len(samples)):
        for seed in "abc":
            sample = samples[SampleKey(index, seed)]
            again = samples[SampleKey(index, seed)]
            assert torch.equal(sample["image"], again["image"])
            assert len(sample["labels"]) == len(sample["boxes"]) == len(sample["masks"])
            assert max(sample["image"].shape[1:]) <= 64
            fewer += len(sample["labels"]) < len(samples.coco.records[index].labels)
    assert fewer
    assert max(whole) > 1


def test_two_views_hold_the_same_instances(dataset):
    """A box that leaves one view leaves the other: of a box in both, the colour is the same."""
    config = DataConfig(
        train=SplitConfig(str(dataset / "train"), proposals=str(dataset / "proposals.json")),
        max_side=64,
        scale_jitter=(0.8, 3.0),
    )
    views = build_two_views(config, max_proposals=None, with_masks=True)
    views.augment = replace(views.augment, photometric=False)
    fewer = compared = 0
    for index in range(len(views)):
        boxes = views.source.records[index].boxes
        for seed in "abcdef":
            one, other = views[SampleKey(index, seed)]
            assert len(one["boxes"]) == len(other["boxes"]) == len(one["masks"])
            fewer += len(one["boxes"]) < len(boxes)
            for first, second in zip(one["boxes"], other["boxes"], strict=True):
                shown = [colour_of(v["image"], b) for v, b in ((one, first), (other, second))]
                if None not in shown:
                    compared += 1
                    assert shown[0] == shown[1]
    assert fewer
    assert compared > 20


def colour_of(image, box):
    """Whether the middle of a box is red or blue; None where it is hidden or too small to tell."""
    x, y = ((box[:2] + box[2:]) / 2).long().tolist()
    if (box[2:] - box[:2]).min() < 12:
        return None
    red, _, blue = image[:, y, x].tolist()
    return None if abs(red - blue) < 100 else red > blue


@pytest.mark.parametrize("scales", [(0.1,), (0.0, 1.0), (2.0, 1.0)])
def test_bad_scales_are_refused(scales):
    with pytest.raises(ValueError, match=r"data.scale_jitter is \[.*\[0.1,2.0\]"):
        DataConfig(scale_jitter=scales)
