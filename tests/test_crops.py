"""Crops and colour changes against torchvision's on Pillow images, and how often they happen."""

from __future__ import annotations

import random
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from torchvision import transforms
from torchvision.transforms import functional

from data import crops
from data.crops import CentreCrop, RandomCrop, jitter_colour, random_crop, shift_hue
from data.transforms import pil_to_tensor

DRAWS = 4000


def picture(width=40, height=30, seed=0):
    """Smooth colours: noise would hide what a hue or a blur does."""
    small = np.random.default_rng(seed).integers(0, 256, (5, 6, 3)).astype(np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def drawn_boxes(width, height, least_area, seed=0):
    rng = random.Random(seed)
    boxes = [random_crop(width, height, least_area, rng) for _ in range(DRAWS)]
    return torch.tensor(boxes, dtype=torch.float64)  # left, top, right, bottom


def torchvisions_boxes(width, height, least_area, seed=0):
    torch.manual_seed(seed)
    draw = transforms.RandomResizedCrop.get_params
    image = torch.zeros(1, height, width)
    boxes = [draw(image, [least_area, 1.0], [3 / 4, 4 / 3]) for _ in range(DRAWS)]
    top, left, height_, width_ = torch.tensor(boxes, dtype=torch.float64).unbind(1)
    return torch.stack([left, top, left + width_, top + height_], dim=1)


def measures(boxes, width, height):
    """Area, aspect ratio and centre of each crop, relative to the image."""
    left, top, right, bottom = boxes.unbind(1)
    area = (right - left) * (bottom - top) / (width * height)
    aspect = (right - left) / (bottom - top)
    return torch.stack(
        [area, aspect.log(), (left + right) / 2 / width, (top + bottom) / 2 / height]
    )


@pytest.mark.parametrize("least_area", [0.08, 0.2])
@pytest.mark.parametrize(("width", "height"), [(320, 240), (200, 300), (600, 200)])
def test_crops_are_distributed_as_torchvisions(width, height, least_area):
    steps = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    ours = measures(drawn_boxes(width, height, least_area), width, height)
    theirs = measures(torchvisions_boxes(width, height, least_area), width, height)
    for mine, other in zip(ours, theirs, strict=True):
        spread = (other.max() - other.min()).item()
        # Quantiles of 4000 draws are known to about a hundredth of the range.
        torch.testing.assert_close(
            mine.quantile(steps), other.quantile(steps), rtol=0, atol=0.035 * spread
        )


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 90), (90, 1), (3, 2), (500, 20)])
def test_crops_lie_inside_images_of_any_shape(width, height):
    left, top, right, bottom = drawn_boxes(width, height, 0.2).unbind(1)
    assert left.min() >= 0
    assert top.min() >= 0
    assert right.max() <= width
    assert bottom.max() <= height
    assert (right - left).min() >= 1
    assert (bottom - top).min() >= 1


def test_where_no_crop_fits_it_is_the_middle():
    assert random_crop(500, 20, 0.9, random.Random(0)) == (236, 0, 263, 20)  # 20 * 4/3 = 26.7
    assert random_crop(20, 500, 0.9, random.Random(0)) == (0, 236, 20, 263)


@pytest.mark.parametrize("turns", [-0.5, -0.1, 0.0, 0.037, 0.1, 0.5])
def test_hue_equals_torchvisions(turns):
    expected = functional.adjust_hue(picture(), turns)
    assert np.array_equal(np.array(shift_hue(picture(), turns)), np.array(expected))


class FixedDraws(random.Random):
    """Gives prescribed draws of `uniform` and a prescribed order of `shuffle`."""

    def __init__(self, values, order):
        super().__init__(0)
        self.values, self.order, self.asked = list(values), order, []

    def uniform(self, low, high):
        self.asked.append((low, high))
        return self.values.pop(0)

    def shuffle(self, items):
        items[:] = [items[i] for i in self.order]


def test_jitter_equals_torchvisions_in_the_order_drawn():
    # hue, contrast, brightness, saturation
    rng = FixedDraws([-0.07, 1.3, 0.65, 0.8], order=[3, 1, 0, 2])
    expected = functional.adjust_hue(picture(), -0.07)
    expected = functional.adjust_contrast(expected, 1.3)
    expected = functional.adjust_brightness(expected, 0.65)
    expected = functional.adjust_saturation(expected, 0.8)
    result = jitter_colour(picture(), strength=0.4, hue=0.1, rng=rng)
    assert np.array_equal(np.array(result), np.array(expected))
    assert rng.asked == [(-0.1, 0.1), (0.6, 1.4), (0.6, 1.4), (0.6, 1.4)]


def test_the_order_of_the_jitter_is_drawn(monkeypatch):
    called = []

    def note(name, enhancer, image):
        called.append(name)
        return enhancer(image)

    monkeypatch.setattr(crops, "shift_hue", lambda image, turns: called.append("hue") or image)
    for name, enhancer in crops.ENHANCERS.items():
        monkeypatch.setitem(crops.ENHANCERS, name, partial(note, name, enhancer))
    rng = random.Random(0)
    for _ in range(400):
        jitter_colour(Image.new("RGB", (2, 2)), 0.4, 0.1, rng)
    assert len(called) == 1600
    # Each of the four comes first in about 100 of 400.
    assert all(70 < called[::4].count(name) < 130 for name in ("hue", *crops.ENHANCERS))


def test_how_often_each_change_happens(monkeypatch):
    """Each change is replaced by a mark; the flip shows in the pixels."""
    counts = {"jitter": 0, "grey": 0, "flip": 0}
    radii = []

    def jitter(image, strength, hue, rng):
        assert (strength, hue) == (0.4, 0.1)
        counts["jitter"] += 1
        return image

    def blur(radius):
        radii.append(radius)
        return ImageFilter.BoxBlur(0)

    monkeypatch.setattr(crops, "jitter_colour", jitter)
    monkeypatch.setattr(crops.ImageFilter, "GaussianBlur", blur)
    image = Image.new("RGB", (8, 8), (200, 20, 20))
    image.paste((20, 20, 200), (0, 0, 4, 8))  # blue on the left
    view, rng = RandomCrop(8, 1.0, colour=True), random.Random(0)
    monkeypatch.setattr(crops, "random_crop", lambda w, h, least_area, rng: (0, 0, w, h))
    for _ in range(DRAWS):
        pixels = view(image, rng).int()
        left, right = pixels[:, 4, 0], pixels[:, 4, 7]
        counts["grey"] += int(left[0] == left[2])
        # Red, or its lighter grey, is on the left after a flip.
        counts["flip"] += int(left[0] > right[0])
    counts["blur"] = len(radii)
    frequency = {name: count / DRAWS for name, count in counts.items()}
    # Five standard deviations of a frequency of 1/2 in 4000 draws: 0.04.
    assert frequency == pytest.approx(
        {"jitter": 0.8, "blur": 0.5, "grey": 0.2, "flip": 0.5}, abs=0.04
    )
    quantiles = torch.tensor(radii).quantile(torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0]))
    expected = torch.tensor([0.1, 0.575, 1.05, 1.525, 2.0])
    torch.testing.assert_close(quantiles, expected, rtol=0, atol=0.06)


def test_a_view_equals_torchvisions_resized_crop():
    view = RandomCrop(16, 0.2, colour=False, flip=1.0)
    box = random_crop(40, 30, 0.2, random.Random(5))
    size = (box.bottom - box.top, box.right - box.left)
    expected = functional.resized_crop(picture(), box.top, box.left, *size, [16, 16])
    expected = functional.hflip(expected)
    assert torch.equal(view(picture(), random.Random(5)), pil_to_tensor(expected))


def test_views_depend_on_their_stream_alone():
    view = RandomCrop(16, 0.2, colour=True)
    assert torch.equal(view(picture(), random.Random(1)), view(picture(), random.Random(1)))
    assert not torch.equal(view(picture(), random.Random(1)), view(picture(), random.Random(2)))


@pytest.mark.parametrize(("width", "height"), [(300, 200), (200, 300), (256, 256), (50, 40)])
def test_centre_crop_equals_torchvisions(width, height):
    expected = functional.resize(picture(width, height), 256)
    expected = functional.center_crop(expected, [224, 224])
    result = CentreCrop(224)(picture(width, height)).int()
    # One side's rounding may differ by a pixel: the middle of smooth pictures hardly moves.
    difference = (result - functional.pil_to_tensor(expected).int()).abs().float()
    assert difference.mean() < 1.5


def test_centre_crop_shows_the_middle():
    image = Image.new("RGB", (256, 512), (0, 0, 0))
    image.paste((255, 255, 255), (16, 144, 240, 368))  # the middle 224 x 224
    assert torch.equal(CentreCrop(224)(image), torch.full((3, 224, 224), 255).byte())
