"""Selective search on drawn scenes and odd images; its ranking by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.ops import box_iou

from data.selective_search import SEARCHES, Strategy, selective_search
from data.selective_search import search as module
from data.selective_search.grouping import Hierarchy
from data.selective_search.search import DEMOTIONS, rank_boxes
from tests.helpers.cuda_rounding import CudaRounding


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
    assert boxes.dtype == torch.float32
    assert boxes.shape == (len(boxes), 4)
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, :2] < boxes[:, 2:]).all()
    assert boxes[:, 2].max() == 128
    assert boxes[:, 3].max() == 96
    assert (boxes == torch.tensor([0.0, 0, 128, 96])).all(dim=1).any()
    assert len(torch.unique(boxes, dim=0)) == len(boxes)


def test_one_pixel_wide_line_has_exclusive_edges() -> None:
    image = torch.zeros(3, 40, 40, dtype=torch.uint8)
    image[:, :, 20:] = 255
    (boxes,) = selective_search([image], [Strategy("rgb", 1.0, 1)])
    halves = torch.tensor([[0.0, 0, 20, 40], [20, 0, 40, 40]])
    assert box_iou(halves, boxes).amax(dim=1).min() > 0.85


def test_deterministic_and_independent_of_the_batch() -> None:
    image, _ = draw_scene(0)
    other, _ = draw_scene(1)
    first = selective_search([image, other])
    again = selective_search(torch.stack([other, image]))
    assert torch.equal(first[0], again[1])
    assert torch.equal(first[1], again[0])
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
    assert boxes.shape[1] == 4
    assert len(boxes) >= 1


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
        selective_search([image], [Strategy(similarities=())])
    with pytest.raises(ValueError, match="similarity"):
        selective_search([image], [Strategy(similarities=("cx",))])


def hierarchy(rows: list[tuple[int, list[float], float]]) -> Hierarchy:
    """From (tree, box, pixels) rows; no region is similar to what it merged with."""
    tree, box, size = zip(*rows, strict=True)
    nothing = torch.zeros(len(rows))
    return Hierarchy(torch.tensor(tree), torch.tensor(size), torch.tensor(box), nothing)


WHOLE, LEFT, RIGHT, CORNER = [0.0, 0, 4, 2], [0.0, 0, 2, 2], [2.0, 0, 4, 2], [3.0, 1, 4, 2]


def test_ranking_by_hand() -> None:
    # position x (1.2 - fill): corner 4 x 0.2, right 3 x 0.7, left 2 x 0.2, whole 1 x 0.2
    rows = [(0, CORNER, 1.0), (0, RIGHT, 2.0), (0, LEFT, 4.0), (0, WHOLE, 8.0)]
    (ranked,) = rank_boxes(hierarchy(rows), torch.tensor([0]), 1)
    assert ranked.tolist() == [WHOLE, LEFT, CORNER, RIGHT]
    # a second hierarchy of the image: right fills its box and is at position 2; whole is double
    rows += [(1, RIGHT, 4.0), (1, WHOLE, 8.0)]
    (ranked,) = rank_boxes(hierarchy(rows), torch.tensor([0, 0]), 1)
    assert ranked.tolist() == [WHOLE, LEFT, RIGHT, CORNER]
    # the same as a separate image
    first, second = rank_boxes(hierarchy(rows), torch.tensor([0, 1]), 2)
    assert first.tolist() == [WHOLE, LEFT, CORNER, RIGHT]
    assert second.tolist() == [WHOLE, RIGHT]


def test_regions_unlike_their_surroundings_come_first() -> None:
    rows = [(0, LEFT, 4.0), (0, RIGHT, 4.0), (0, WHOLE, 8.0)]
    regions = hierarchy(rows)
    regions.likeness[:2] = torch.tensor([0.9, 0.1])
    (ranked,) = rank_boxes(regions, torch.tensor([0]), 1)
    assert ranked.tolist() == [WHOLE, RIGHT, LEFT]


def test_overlaps_are_demoted_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DEMOTIONS", ((0.5, 3.0), (0.9, 10.0)))
    monkeypatch.setattr(module, "HEAD_START", 1)
    boxes = torch.tensor(
        [
            [0.0, 0, 100, 100],
            [0, 0, 100, 95],  # IoU 0.95 with the first: place (1 + 1) x 10
            [0, 0, 100, 60],  # IoU 0.6: (2 + 1) x 3 = 9
            [200, 0, 300, 100],  # 3 + 1 = 4
            [0, 200, 100, 300],  # 4 + 1 = 5
        ]
    )
    demoted = [0, 3, 4, 2, 1]
    one = torch.zeros(5, dtype=torch.int64)
    assert module._demote_overlaps(boxes, one).tolist() == demoted
    two, image = torch.cat([boxes, boxes.flip(0)]), torch.tensor([3] * 5 + [4] * 5)
    alone = module._demote_overlaps(boxes.flip(0), one)
    assert module._demote_overlaps(two, image).tolist() == [*demoted, *(alone + 5).tolist()]


def test_first_boxes_are_spread_over_the_image() -> None:
    image, objects = draw_scene()
    (boxes,) = selective_search([image])
    assert box_iou(objects, boxes[:20]).amax(dim=1).min() > 0.5


def test_batching_mixed_sizes_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    image, _ = draw_scene()
    images = [image, image[:, :50], image[:, :, :40], image.transpose(1, 2), image[:, :1, :1]]
    images.append(torch.zeros(3, 0, 4, dtype=torch.uint8))
    alone = [selective_search([i])[0] for i in images]
    for pixels in (1, 20_000, 10**9):
        monkeypatch.setattr(module, "CPU_BATCH_PIXELS", pixels)
        together = selective_search(images)
        assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


def test_fast_search_finds_less_but_the_same_kind() -> None:
    image, objects = draw_scene()
    (fast,), (thorough,) = (selective_search([image], SEARCHES[n]) for n in ("fast", "thorough"))
    assert 0 < len(fast) < len(thorough)
    assert box_iou(objects, fast).amax(dim=1).min() > 0.8


def test_boxes_are_the_same_with_the_rounding_of_cuda() -> None:
    """Also in another batch, and with all strategies segmented together."""
    images = [draw_scene(seed)[0] for seed in range(4)]
    images.append(
        torch.randint(256, (3, 50, 60), generator=torch.Generator().manual_seed(0)).byte()
    )
    expected = [selective_search([image])[0] for image in images]
    with CudaRounding():
        found = selective_search(images)
    assert sum(map(len, expected)) > 1000
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


def test_thresholds_are_the_same_in_float32() -> None:
    """No IoU in float32 lies between the threshold and the float32 that CUDA compares with."""
    for iou, _ in DEMOTIONS:
        nearest = torch.tensor(iou, dtype=torch.float32)
        above = torch.nextafter(nearest, torch.tensor(1.0))
        assert nearest.item() <= iou < above.item()
    four_fifths = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 8]])
    assert box_iou(*four_fifths[:, None]) > DEMOTIONS[2][0]


def test_several_images_in_one_comparison_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    images = [draw_scene(seed)[0] for seed in range(3)]
    alone = [selective_search([image])[0] for image in images]
    runs = module._runs
    for most in (1, 700, 10**6):
        monkeypatch.setattr(module, "_runs", lambda counts, _, most=most: runs(counts, most))
        monkeypatch.setattr(module, "CPU_BATCH_PIXELS", 10**6)
        assert all(map(torch.equal, selective_search(images), alone))
    assert runs([3, 4, 2, 9, 1], 6) == [[3], [4, 2], [9], [1]]
