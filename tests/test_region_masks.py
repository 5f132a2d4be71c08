"""The regions of selective search against a slow reference that unites sets of pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from data.selective_search import (
    Strategy,
    selective_search,
    selective_search_with_regions,
)
from data.selective_search import search as module
from data.selective_search.region_masks import collect_regions
from tests.helpers.cuda_rounding import CudaRounding

STRATEGIES = (Strategy("hsv", 100.0, 20, ("ctsf", "sf")), Strategy("rgb", 200.0, 20, ("cf",)))


def noisy_blocks(seed: int, height: int, width: int) -> Tensor:
    """(3, H, W) uint8 of blocks of random colours."""
    random = np.random.default_rng(seed)
    blocks = random.integers(0, 256, (3, 6, 7)).repeat(12, 1).repeat(12, 2)[:, :height, :width]
    return torch.from_numpy((blocks + random.integers(0, 9, blocks.shape)).clip(0, 255)).byte()


IMAGES = [noisy_blocks(0, 50, 66), noisy_blocks(1, 62, 40), noisy_blocks(2, 45, 45)]


def tight_box(mask: Tensor) -> list[int]:
    ys, xs = mask.nonzero().T
    return [xs.min().item(), ys.min().item(), xs.max().item() + 1, ys.max().item() + 1]


def test_masks_are_the_united_pixels_of_the_merged_segments(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = {}

    def collect(hierarchy, rows, maps, strategy_of, sizes):
        seen.update(hierarchy=hierarchy, rows=rows, maps=maps)
        return collect_regions(hierarchy, rows, maps, strategy_of, sizes)

    monkeypatch.setattr(module, "collect_regions", collect)
    found = selective_search_with_regions(IMAGES, STRATEGIES)
    # The images are searched in the order of their shapes, see `_batches`.
    order = sorted(range(3), key=lambda i: tuple(IMAGES[i].shape))
    sets: list[set[tuple[int, ...]]] = []
    for strategy in (0, 0, 1):  # the segments of each notion of similarity
        labels = seen["maps"][strategy]
        parts = [set() for _ in range(int(labels.max()) + 1)]
        for place in (labels >= 0).nonzero().tolist():
            parts[int(labels[tuple(place)])].add(tuple(place))
        sets += parts
    for ones, others in seen["hierarchy"].merges:
        for one, other in zip(ones.tolist(), others.tolist(), strict=True):
            sets.append(sets[one] | sets[other])
    compared = 0
    for place, index in enumerate(order):
        regions = found[index][1]
        for number, row in enumerate(seen["rows"][place].tolist()):
            mask = regions.decode(number)
            assert {(place, *pixel) for pixel in mask.nonzero().tolist()} == sets[row]
            assert int(mask.sum()) == seen["hierarchy"].size[row]
            compared += 1
    assert compared > 100


def test_boxes_are_the_same_and_the_tight_ones() -> None:
    with_regions = selective_search_with_regions(IMAGES, STRATEGIES)
    for boxes, (same, regions) in zip(
        selective_search(IMAGES, STRATEGIES), with_regions, strict=True
    ):
        assert torch.equal(boxes, same)
        assert len(regions) == len(boxes) > 20
        assert [tight_box(regions.decode(i)) for i in range(len(boxes))] == boxes.tolist()


def test_masks_do_not_depend_on_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    together = selective_search_with_regions([*IMAGES, torch.zeros(3, 0, 4).byte()], STRATEGIES)
    assert len(together[3][1]) == 0
    monkeypatch.setattr(module, "CPU_BATCH_PIXELS", 1)
    with CudaRounding():
        for image, (_, regions) in zip(IMAGES, together, strict=False):
            ((_, alone),) = selective_search_with_regions([image], STRATEGIES)
            assert regions.decode(0).shape == image.shape[1:]
            for index in range(len(alone)):
                assert torch.equal(alone.decode(index), regions.decode(index))


def test_nothing_is_collected_unless_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "collect_regions", None)
    assert len(selective_search(IMAGES, STRATEGIES)) == 3
    with pytest.raises(TypeError):
        selective_search_with_regions(IMAGES, STRATEGIES)
