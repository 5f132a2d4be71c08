"""Selective search on drawn scenes, its region features by hand, its grouping by slow loops."""

from __future__ import annotations

import colorsys

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.ops import box_iou

from data.region_features import describe_regions, rgb_to_hsv, rgb_to_lab
from data.selective_search import Strategy, group_regions, rank_boxes, selective_search


def draw_scene(seed: int = 0) -> tuple[Tensor, Tensor]:
    """A (3, 96, 128) uint8 image with a rectangle, a disk and a striped square, and their boxes."""
    random = np.random.default_rng(seed)
    image = np.empty((96, 128, 3))
    image[:] = (70, 110, 80)
    image[10:40, 12:60] = (220, 60, 50)
    y, x = np.mgrid[:96, :128]
    image[(y - 64) ** 2 + (x - 34) ** 2 <= 20**2] = (60, 80, 230)
    image[30:74, 78:120] = np.where(x[30:74, 78:120, None] // 3 % 2, 250.0, 15.0)
    image += random.normal(0, 4, image.shape)
    pixels = image.round().clip(0, 255).astype(np.uint8)
    boxes = torch.tensor([[12.0, 10, 60, 40], [14, 44, 55, 85], [78, 30, 120, 74]])
    return torch.from_numpy(pixels).permute(2, 0, 1), boxes


@pytest.mark.parametrize("seed", range(3))
def test_finds_drawn_objects(seed: int) -> None:
    image, objects = draw_scene(seed)
    (boxes,) = selective_search([image])
    assert box_iou(objects, boxes).amax(dim=1).min() > 0.8


def test_boxes_are_valid_unique_and_cover_the_image() -> None:
    image, _ = draw_scene()
    (boxes,) = selective_search([image])
    assert boxes.dtype == torch.float32 and boxes.shape == (len(boxes), 4)
    assert (boxes[:, :2] >= 0).all() and (boxes[:, :2] < boxes[:, 2:]).all()
    assert boxes[:, 2].max() == 128 and boxes[:, 3].max() == 96  # exclusive edges
    assert (boxes == torch.tensor([0.0, 0, 128, 96])).all(dim=1).any()
    assert len(torch.unique(boxes, dim=0)) == len(boxes)


def test_one_pixel_wide_line_has_exclusive_edges() -> None:
    image = torch.zeros(3, 40, 40, dtype=torch.uint8)
    image[:, :, 20:] = 255
    (boxes,) = selective_search([image], [Strategy("rgb", 1.0)])
    halves = torch.tensor([[0.0, 0, 20, 40], [20, 0, 40, 40]])
    assert box_iou(halves, boxes).amax(dim=1).min() > 0.85


def test_deterministic_and_independent_of_the_batch() -> None:
    image, _ = draw_scene(0)
    other, _ = draw_scene(1)
    first = selective_search([image, other])
    again = selective_search(torch.stack([other, image]))
    assert torch.equal(first[0], again[1]) and torch.equal(first[1], again[0])
    assert not torch.equal(first[0], first[1])


def test_floats_equal_bytes() -> None:
    image, _ = draw_scene()
    as_bytes, as_floats = selective_search([image, image.float() / 255])
    assert torch.equal(as_bytes, as_floats)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (3, 2), (40, 50)])
def test_one_colour_gives_the_whole_image(size: tuple[int, int]) -> None:
    height, width = size
    (boxes,) = selective_search([torch.full((3, height, width), 90, dtype=torch.uint8)])
    assert boxes.tolist() == [[0, 0, width, height]]


@pytest.mark.parametrize("size", [(2, 2), (5, 7), (1, 30)])
def test_tiny_noise_does_not_crash(size: tuple[int, int]) -> None:
    image = torch.rand(3, *size, generator=torch.Generator().manual_seed(0))
    (boxes,) = selective_search([image])
    assert boxes.shape[1] == 4 and len(boxes) >= 1


def test_image_without_pixels_gives_no_box() -> None:
    (boxes,) = selective_search([torch.zeros(3, 0, 5, dtype=torch.uint8)])
    assert boxes.shape == (0, 4)


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (torch.zeros(1, 8, 8), "shape"),
        (torch.zeros(3, 8, 8, dtype=torch.int64), "uint8"),
        (torch.full((3, 8, 8), 2.0), "0..1"),
        (torch.full((3, 8, 8), float("nan")), "0..1"),
    ],
)
def test_refuses_other_images(image: Tensor, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        selective_search([image])


def test_refuses_unknown_strategies() -> None:
    image = torch.zeros(3, 8, 8, dtype=torch.uint8)
    with pytest.raises(ValueError, match="colour_space"):
        selective_search([image], [Strategy("cmyk")])
    with pytest.raises(ValueError, match="similarity"):
        selective_search([image], [Strategy(similarity="cx")])


def test_ranking_by_hand() -> None:
    whole, left, right, corner = [0, 0, 4, 2], [0, 0, 2, 2], [2, 0, 4, 2], [3, 1, 4, 2]
    boxes = np.array([corner, right, left, whole], dtype=np.float32)
    pixels = np.array([1, 2, 4, 8], dtype=np.float32)
    # position x (1.2 - fill): corner 4 x 0.2, right 3 x 0.7, left 2 x 0.2, whole 1 x 0.2
    assert rank_boxes([(boxes, pixels)]).tolist() == [whole, left, corner, right]
    # a second hierarchy: right fills its box and stands at position 2, and whole is a double
    again = (boxes[[1, 3]], np.array([4, 8], dtype=np.float32))
    assert rank_boxes([(boxes, pixels), again]).tolist() == [whole, left, right, corner]


# ---------------------------------------------------------------- features of a hand-made labelling

LABELS = np.array([[0, 0, 1, 1], [0, 2, 2, 1], [3, 2, 2, 3]], dtype=np.int32)


def hand_made_regions():
    colours = np.zeros((3, 4, 1), dtype=np.float32)
    colours[LABELS == 1] = 255
    colours[0, 0] = 128
    pixels = np.random.default_rng(0).integers(0, 256, (3, 4, 3)).astype(np.uint8)
    return describe_regions(LABELS, colours, pixels)


def test_size_box_and_neighbours_by_hand() -> None:
    regions = hand_made_regions()
    assert regions.size.tolist() == [3, 3, 4, 2]
    assert regions.box.tolist() == [[0, 0, 2, 2], [2, 0, 4, 2], [1, 1, 3, 3], [0, 2, 4, 3]]
    expected = [[0, 1], [0, 2], [0, 3], [1, 2], [1, 3], [2, 3]]
    assert regions.pairs.tolist() == expected


def test_colour_histogram_by_hand() -> None:
    colour = hand_made_regions().colour
    assert colour.shape == (4, 25)
    expected = np.zeros((4, 25))
    expected[0, 12], expected[0, 0] = 1 / 3, 2 / 3  # 128 * 25 / 256 = 12.5
    expected[1, 24] = expected[2, 0] = expected[3, 0] = 1
    np.testing.assert_allclose(colour, expected, atol=1e-6)


def test_texture_tells_directions_apart() -> None:
    labels = np.zeros((12, 40), dtype=np.int32)
    labels[:, 20:] = 1
    ramp = np.arange(20) * 10.0
    pixels = np.zeros((12, 40, 1))
    pixels[:, :20, 0] = ramp  # brighter to the right
    pixels[:, 20:, 0] = ramp[::-1]  # brighter to the left
    texture = describe_regions(labels, pixels, pixels).texture.reshape(2, 8, 10)
    np.testing.assert_allclose(texture.sum(axis=(1, 2)), 1, rtol=1e-5)
    up_x, down_x = 2, 3  # order: up y, down y, up x, down x, then the diagonals
    assert texture[0, up_x, 0] < 0.02 and texture[0, down_x, 0] > 0.12
    assert texture[1, up_x, 0] > 0.1 and texture[1, down_x, 0] < 0.02


# ---------------------------------------------------------------------------------- colour spaces


def test_hsv_equals_colorsys() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 10, 3)).astype(np.uint8)
    pixels[0] = [[0, 0, 0], [255, 255, 255], [7, 7, 7], [255, 0, 0], [0, 255, 0]] * 2
    expected = [colorsys.rgb_to_hsv(*rgb) for rgb in (pixels.reshape(-1, 3) / 255).tolist()]
    found = rgb_to_hsv(pixels).reshape(-1, 3) / 255
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_lab_of_known_colours() -> None:
    pixels = np.array([[[0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 0, 255]]], dtype=np.uint8)
    found = rgb_to_lab(pixels)[0]
    lab = np.stack([found[:, 0] / 2.55, found[:, 1] - 128, found[:, 2] - 128], axis=1)
    expected = [[0, 0, 0], [100, 0, 0], [53.24, 80.09, 67.20], [32.30, 79.19, -107.86]]
    np.testing.assert_allclose(lab, expected, atol=0.1)


# --------------------------------------------------------------------------------------- grouping


def group_slowly(labels: np.ndarray, regions, similarity: str) -> tuple[list, list]:
    """The greedy grouping with pixel sets and all pairs compared anew at every step."""
    total = labels.size
    alive = {
        i: (set(zip(*np.nonzero(labels == i))), regions.colour[i], regions.texture[i])
        for i in range(labels.max() + 1)
    }

    def box(pixels: set) -> list[float]:
        ys, xs = zip(*pixels)
        return [min(xs), min(ys), max(xs) + 1, max(ys) + 1]

    def touch(one: set, other: set) -> bool:
        return any((y + dy, x + dx) in other for y, x in one
                   for dy, dx in ((0, 1), (1, 0), (0, -1), (-1, 0)))

    def likeness(a: int, b: int) -> float:
        (one, c1, t1), (other, c2, t2) = alive[a], alive[b]
        x1, y1, x2, y2 = box(one | other)
        both = len(one) + len(other)
        terms = {
            "c": sum(map(min, c1, c2)),
            "t": sum(map(min, t1, t2)),
            "s": 1 - both / total,
            "f": 1 - ((x2 - x1) * (y2 - y1) - both) / total,
        }
        return sum(terms[letter] for letter in similarity)

    boxes = [box(alive[i][0]) for i in sorted(alive)]
    sizes = [len(alive[i][0]) for i in sorted(alive)]
    while len(alive) > 1:
        pairs = [(a, b) for a in alive for b in alive if a < b and touch(alive[a][0], alive[b][0])]
        a, b = max(pairs, key=lambda pair: likeness(*pair))
        (one, c1, t1), (other, c2, t2) = alive.pop(a), alive.pop(b)
        n, m = len(one), len(other)
        mixed = (n * c1 + m * c2) / (n + m), (n * t1 + m * t2) / (n + m)
        alive[len(boxes)] = (one | other, *mixed)
        boxes.append(box(one | other))
        sizes.append(n + m)
    return boxes, sizes


@pytest.mark.parametrize("similarity", ["ctsf", "tsf", "c", "sf"])
def test_grouping_equals_slow_loops(similarity: str) -> None:
    random = np.random.default_rng(5)
    cells = random.permutation(30).reshape(5, 6)
    labels = np.kron(cells, np.ones((3, 4), dtype=int)).astype(np.int32)
    labels[1::3, 1:-1:4] = labels[1::3, 2::4]  # uneven sizes
    labels[:, 7] = labels[:, 8]
    labels[4] = labels[5]
    pixels = random.integers(0, 256, (*labels.shape, 3)).astype(np.uint8)
    regions = describe_regions(labels, rgb_to_hsv(pixels), pixels)
    boxes, pixels = group_regions(regions, similarity)
    expected_boxes, expected_pixels = group_slowly(labels, regions, similarity)
    assert boxes.tolist() == expected_boxes
    assert pixels.tolist() == expected_pixels
