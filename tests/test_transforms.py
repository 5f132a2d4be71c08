"""Boxes follow the pixels through every transform; sizes, flips and operations are as stated."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.transforms import functional

from data import transforms
from data.images import ORIENTATION, ImageReading, read_image, reduced
from data.transforms import (
    PHOTOMETRIC,
    Augment,
    horizontal_flip,
    photometric,
    pil_to_tensor,
    resize,
    resized_size,
)
from tests.helpers.drawn_boxes import COLOURS, draw, find, find_marker

BOXES = [(9, 5, 40, 21), (70, 8, 88, 52), (12, 40, 60, 57)]  # nowhere near symmetric
# Ground and marker of these colours stay apart under every operation at every strength.
GROUND, MARKER = (70, 90, 110), (220, 200, 30)
STRENGTHS = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0)


def as_boxes(boxes):
    return torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)


def as_pixels(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def noise(width, height, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3))
    return Image.fromarray(pixels.astype(np.uint8))


def assert_boxes_follow(pixels, boxes, tolerance=1.0):
    """Box k lies around the rectangle of colour k."""
    for box, colour in zip(boxes, COLOURS, strict=False):
        torch.testing.assert_close(find(pixels, colour), box, rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    ("size", "short_side", "max_side", "expected"),
    [
        ((480, 640), 800, 1333, (800, 1067)),  # 640 * 5/3 = 1066.7
        ((640, 480), 800, 1333, (1067, 800)),
        ((400, 1000), 800, 1333, (533, 1333)),  # the cap: 400 * 1.333 = 533.2
        ((1000, 400), 800, 1333, (1333, 533)),
        ((800, 800), 800, 1333, (800, 800)),
        ((1600, 2000), 400, 1333, (400, 500)),
        ((1, 5000), 800, 1333, (1, 1333)),  # never less than a pixel
    ],
)
def test_resized_size_by_hand(size, short_side, max_side, expected):
    assert resized_size(*size, short_side, max_side) == expected


def test_resized_size_follows_torchvisions_rule():
    """torchvision takes the floor where we round: at most one pixel apart, never above the cap."""
    rng = random.Random(0)
    capped = 0
    for _ in range(60):
        height, width = rng.randint(10, 120), rng.randint(10, 120)
        short, cap = rng.randint(20, 60), rng.randint(60, 100)
        oracle = GeneralizedRCNNTransform(short, cap, [0.0] * 3, [1.0] * 3)
        image, _ = oracle.resize(torch.zeros(3, height, width), None)
        ours = resized_size(height, width, short, cap)
        assert abs(ours[0] - image.shape[1]) <= 1
        assert abs(ours[1] - image.shape[2]) <= 1
        assert max(ours) <= cap
        assert min(ours) <= short
        capped += max(ours) == cap
    assert 10 < capped < 50  # both branches of the rule were met


@pytest.mark.parametrize(
    ("short_side", "max_side"), [(64, 999), (180, 999), (33, 999), (100, 130), (64, 41)]
)
def test_resize_moves_boxes_with_pixels(short_side, max_side):
    image, boxes = resize(draw(96, 64, BOXES), as_boxes(BOXES), short_side, max_side)
    assert (image.height, image.width) == resized_size(64, 96, short_side, max_side)
    assert_boxes_follow(as_pixels(image), boxes)


def test_resize_takes_the_factor_of_each_axis():
    """10 x 101 to 5 x 50: the height halves, the width shrinks by 50 / 101 after rounding."""
    image, boxes = resize(draw(101, 10, []), as_boxes([(0, 0, 101, 10)]), 5, 999)
    assert image.size == (50, 5)
    torch.testing.assert_close(boxes, as_boxes([(0, 0, 50, 5)]))


@pytest.mark.parametrize("value", range(1, 9))
def test_a_turned_jpeg_that_was_decoded_smaller_stays_in_its_place(tmp_path, value):
    """Of 1001 x 729 pixels at an eighth, the last column and row show one pixel of the file each:
    as if they showed eight, the picture would be 7 pixels off."""
    exif = Image.Exif()
    exif[ORIENTATION] = value
    coarse = np.random.default_rng(0).integers(0, 255, (6, 8, 3), np.uint8)
    picture = Image.fromarray(coarse).resize((1001, 729), Image.Resampling.BICUBIC)
    picture.save(tmp_path / "a.jpg", quality=95, subsampling=0, exif=exif)
    reading = ImageReading("apply")
    whole = read_image(tmp_path / "a.jpg", reading)
    small = read_image(tmp_path / "a.jpg", reading, least=(90, 90))
    assert reduced(small).scale == 8
    images = [resize(image, as_boxes([]), 90, 999)[0] for image in (small, whole)]
    ours, expected = (as_pixels(image).float() for image in images)
    assert (ours - expected).abs().mean() < 0.5


@pytest.mark.parametrize("least", [(97, 65), (49, 33), (48, 32)])
def test_resize_of_a_jpeg_that_was_decoded_smaller(tmp_path, least):
    """Sizes and boxes refer to the whole, also where the last pixels reach beyond it."""
    big = [(4 * x1, 4 * y1, 4 * x2, 4 * y2) for x1, y1, x2, y2 in BOXES]
    draw(389, 261, big).save(tmp_path / "a.jpg", quality=95, subsampling=0)
    whole = read_image(tmp_path / "a.jpg")
    small = read_image(tmp_path / "a.jpg", least=least)
    assert small.size != whole.size
    expected, moved = resize(whole, as_boxes(big), 32, 999)
    for _ in range(2):  # it is left as it was
        image, boxes = resize(small, as_boxes(big), 32, 999)
        assert image.size == expected.size
        assert torch.equal(boxes, moved)
        difference = as_pixels(image).float() - as_pixels(expected).float()
        assert difference.abs().mean() < 4
        assert reduced(image).scale == 1


def test_flip_moves_boxes_with_pixels():
    image, boxes = horizontal_flip(draw(96, 64, BOXES), as_boxes(BOXES))
    assert_boxes_follow(as_pixels(image), boxes, tolerance=0)
    assert (boxes[:, 2] > boxes[:, 0]).all()
    again, original = horizontal_flip(image, boxes)
    assert torch.equal(original, as_boxes(BOXES))
    assert torch.equal(as_pixels(again), as_pixels(draw(96, 64, BOXES)))


def test_geometric_transforms_take_images_without_boxes():
    none = as_boxes([])
    assert resize(draw(20, 10, []), none, 30, 99)[1].shape == (0, 4)
    assert horizontal_flip(draw(20, 10, []), none)[1].shape == (0, 4)


def test_transforms_leave_their_input_alone():
    image, boxes = draw(96, 64, BOXES), as_boxes(BOXES)
    before = np.array(image)
    augment = Augment((40, 90), flip=0.5, photometric=True)
    for seed in range(20):
        augment(image, boxes, random.Random(seed))
    assert np.array_equal(np.array(image), before)
    assert torch.equal(boxes, as_boxes(BOXES))


def test_pil_to_tensor_gives_torchvisions_pixels():
    image = noise(13, 7)
    ours = pil_to_tensor(image)
    assert ours.dtype == torch.uint8
    assert torch.equal(ours, functional.pil_to_tensor(image))
    assert ours.permute(1, 2, 0).is_contiguous()  # rows are copied whole


def test_the_nine_operations_of_the_paper():
    assert set(PHOTOMETRIC) == {
        "identity",
        "auto_contrast",
        "equalize",
        "solarize",
        "colour",
        "contrast",
        "brightness",
        "sharpness",
        "posterize",
    }


@pytest.mark.parametrize("operation", list(PHOTOMETRIC))
@pytest.mark.parametrize("strength", STRENGTHS)
def test_photometric_operations_move_nothing(operation, strength):
    box = (9, 5, 40, 21)
    image = draw(96, 64, [box], [MARKER], GROUND)
    changed = photometric(image, operation, strength)
    assert changed.size == image.size
    assert changed.mode == "RGB"
    found = find_marker(as_pixels(changed))
    torch.testing.assert_close(found, as_boxes([box])[0], rtol=0, atol=1)


@pytest.mark.parametrize("operation", list(PHOTOMETRIC))
def test_photometric_operations_change_pixels(operation):
    """Identity changes none at any strength; the others do at most strengths."""
    pixels = np.linspace(20, 220, 256).astype(np.uint8)[np.array(noise(40, 30))]
    image = Image.fromarray(pixels)
    changed = [
        not np.array_equal(np.array(photometric(image, operation, strength)), pixels)
        for strength in STRENGTHS
    ]
    if operation == "identity":
        assert not any(changed)
    else:
        assert changed[-1]
        assert sum(changed) >= len(STRENGTHS) - 2  # at most two strengths are neutral


@pytest.mark.parametrize(
    ("operation", "strength", "expected"),
    [
        ("solarize", 0.5, [[10, 100, 127, 127, 55]]),  # from 128 on: 255 - value
        ("solarize", 0.0, [[10, 100, 127, 128, 200]]),
        ("solarize", 1.0, [[245, 155, 128, 127, 55]]),
        ("posterize", 1.0, [[0, 96, 112, 128, 192]]),  # 4 bits
        ("posterize", 0.5, [[8, 100, 124, 128, 200]]),  # 6 bits
        ("brightness", 0.5, [[10, 100, 127, 128, 200]]),  # factor 1
        ("brightness", 0.0, [[1, 10, 12, 12, 20]]),  # factor 0.1
    ],
)
def test_strengths_by_hand(operation, strength, expected):
    row = np.array([[10, 100, 127, 128, 200]], dtype=np.uint8)
    image = Image.fromarray(np.repeat(row[:, :, None], 3, axis=2))
    changed = np.array(photometric(image, operation, strength))
    for channel in range(3):
        assert changed[:, :, channel].tolist() == expected


def test_augment_draws_the_operations_uniformly(monkeypatch):
    drawn, strengths = Counter(), []

    def record(image, operation, strength):
        drawn[operation] += 1
        strengths.append(strength)
        return image

    monkeypatch.setattr(transforms, "photometric", record)
    augment, image, boxes = Augment((2,), photometric=True), draw(2, 2, []), as_boxes([])
    rng = random.Random(0)
    for _ in range(2700):
        augment(image, boxes, rng)
    assert set(drawn) == set(PHOTOMETRIC)
    assert all(abs(count - 300) < 66 for count in drawn.values())  # four standard deviations
    assert 0 <= min(strengths) < 0.01
    assert 0.99 < max(strengths) <= 1


def test_augment_moves_boxes_with_pixels():
    """Many seeds: both flips and every size occur, and the boxes are right each time."""
    image, boxes = draw(96, 64, BOXES), as_boxes(BOXES)
    augment = Augment(short_sides=(40, 64, 110), max_side=150)
    seen = Counter()
    for seed in range(60):
        tensor, moved = augment(image, boxes, random.Random(seed))
        assert_boxes_follow(tensor, moved)
        height, width = tensor.shape[1:]
        flipped = bool(moved[0, 0] > width / 2)
        seen[height, flipped] += 1
    assert set(seen) == {(h, flip) for h in (40, 64, 100) for flip in (False, True)}


def test_augment_with_photometric_moves_boxes_with_pixels():
    box = (9, 5, 40, 21)
    image = draw(96, 64, [box], [MARKER], GROUND)
    augment = Augment(short_sides=(48, 100), max_side=140, photometric=True)
    for seed in range(100):
        tensor, moved = augment(image, as_boxes([box]), random.Random(seed))
        found = find_marker(tensor)
        torch.testing.assert_close(found, moved[0], rtol=0, atol=1.5)


def test_augment_depends_on_the_seed_alone():
    image, boxes = noise(40, 30), as_boxes([(3, 4, 20, 25)])
    augment = Augment((20, 30, 40), photometric=True)
    first = [augment(image, boxes, random.Random(seed)) for seed in range(10)]
    random.seed(99)
    torch.manual_seed(99)
    for seed in reversed(range(10)):
        tensor, moved = augment(image, boxes, random.Random(seed))
        assert torch.equal(tensor, first[seed][0])
        assert torch.equal(moved, first[seed][1])


def test_augment_switches():
    image, boxes = noise(40, 30), as_boxes([(3, 4, 20, 25)])
    plain = Augment((30,), flip=0.0)
    mirrored = Augment((30,), flip=1.0)
    for seed in range(10):
        tensor, moved = plain(image, boxes, random.Random(seed))
        assert torch.equal(tensor, as_pixels(image))
        assert torch.equal(moved, boxes)
        tensor, moved = mirrored(image, boxes, random.Random(seed))
        assert torch.equal(tensor, as_pixels(image).flip(2))
        assert moved.tolist() == [[20, 4, 37, 25]]
