"""Grouping against slow loops: rounds of mutually best pairs, and the paper's single pairs."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from data.selective_search.grouping import Hierarchy, group_regions
from data.selective_search.region_features import (
    Regions,
    describe_regions,
    round_histogram,
    texture_levels,
)
from data.selective_search.segmentation import Segmentation, unique_pairs

PIXELS = torch.tensor([15 * 24])


def made_regions(seed: int) -> tuple[Regions, torch.Tensor]:
    """Regions of uneven sizes and random colours, and their labels (15, 24)."""
    generator = torch.Generator().manual_seed(seed)
    cells = torch.randperm(30, generator=generator).view(5, 6)
    labels = cells.repeat_interleave(3, 0).repeat_interleave(4, 1)
    labels[1::3, 1:-1:4] = labels[1::3, 2::4]
    labels[:, 7], labels[4] = labels[:, 8].clone(), labels[5].clone()
    across = torch.stack([labels[:, :-1].flatten(), labels[:, 1:].flatten()])
    down = torch.stack([labels[:-1].flatten(), labels[1:].flatten()])
    pairs = torch.cat([across, down], dim=1)
    pairs = unique_pairs(*pairs[:, pairs[0] != pairs[1]])
    image = torch.randint(256, (1, 3, 15, 24), generator=generator).float()
    texture = texture_levels(image, torch.ones(1, 15, 24, dtype=torch.bool))
    regions = describe_regions(Segmentation(labels[None], 30, pairs), image, texture)
    shares = (torch.rand(30, 75, generator=generator) * 3).softmax(dim=1)  # leaves no ties
    return dataclasses.replace(regions, colour=round_histogram(shares)), labels


def box_of(pixels: set) -> tuple[int, ...]:
    ys, xs = zip(*pixels, strict=True)
    return min(xs), min(ys), max(xs) + 1, max(ys) + 1


def touch(one: set, other: set) -> bool:
    steps = ((0, 1), (1, 0), (0, -1), (-1, 0))
    return any((y + dy, x + dx) in other for y, x in one for dy, dx in steps)


def likeness(one: tuple, other: tuple, letters: str) -> float:
    """Mean of Equations 3 to 6 of the paper for two (pixels, colour, texture)."""
    total, both = int(PIXELS), len(one[0]) + len(other[0])
    x1, y1, x2, y2 = box_of(one[0] | other[0])
    terms = {
        "c": sum(map(min, one[1], other[1])),
        "t": sum(map(min, one[2], other[2])),
        "s": 1 - both / total,
        "f": 1 - ((x2 - x1) * (y2 - y1) - both) / total,
    }
    return sum(terms[letter] for letter in letters) / len(letters)


def group_slowly(regions: Regions, labels: torch.Tensor, letters: str, together: bool) -> set:
    """(box, pixels) of all regions; merges all mutually best pairs per round, or only the best."""
    alive = [
        (set(map(tuple, (labels == i).nonzero().tolist())),
         regions.colour[i].tolist(), regions.texture[i].tolist())
        for i in range(30)
    ]  # fmt: skip
    made = {(box_of(pixels), len(pixels)) for pixels, _, _ in alive}
    while len(alive) > 1:
        like = {
            (a, b): likeness(alive[a], alive[b], letters)
            for a in range(len(alive)) for b in range(a)
            if touch(alive[a][0], alive[b][0])
        }  # fmt: skip
        best = {i: max((p for p in like if i in p), key=like.get) for i in range(len(alive))}
        chosen = {pair for pair in like if best[pair[0]] == best[pair[1]] == pair}
        if not together:
            chosen = {max(like, key=like.get)}
        for a, b in chosen:
            (one, *first), (other, *second) = alive[a], alive[b]
            n, m = len(one), len(other)
            mixed = [
                [
                    round((n * x + m * y) / (n + m) * 65536) / 65536
                    for x, y in zip(*pair, strict=True)
                ]
                for pair in zip(first, second, strict=True)
            ]
            alive.append((one | other, *mixed))
            made.add((box_of(one | other), n + m))
        gone = {i for pair in chosen for i in pair}
        alive = [region for i, region in enumerate(alive) if i not in gone]
    return made


def as_set(hierarchy: Hierarchy, tree: int = 0) -> set:
    own = hierarchy.tree == tree
    boxes, sizes = hierarchy.box[own].int().tolist(), hierarchy.size[own].int().tolist()
    return {(tuple(box), size) for box, size in zip(boxes, sizes, strict=True)}


@pytest.mark.parametrize("letters", ["ctsf", "csf", "cf", "ct", "c"])
def test_equals_slow_rounds_of_mutually_best_pairs(letters: str) -> None:
    regions, labels = made_regions(5)
    hierarchy, image = group_regions([(regions, letters)], PIXELS)
    assert len(hierarchy) == 2 * 30 - 1
    assert image.tolist() == [0]
    assert as_set(hierarchy) == group_slowly(regions, labels, letters, together=True)


def test_size_alone_gives_the_papers_hierarchy() -> None:
    # Unions are less similar than their parts. Equal sizes would leave a choice: make all differ.
    sizes = torch.tensor([1.0, 2, 4, 8, 16, 32, 64, 128])
    regions = Regions(
        image=torch.zeros(8, dtype=torch.int64),
        size=sizes,
        box=torch.tensor([[x, 0.0, x + 1, 1] for x in range(8)]),
        colour=torch.zeros(8, 1),
        texture=torch.zeros(8, 1),
        pairs=torch.tensor([[0, 2, 4, 6, 1, 3, 5], [7, 7, 7, 7, 4, 6, 2]]),
    )
    hierarchy, _ = group_regions([(regions, "s")], torch.tensor([255]))
    alive, pairs = dict(enumerate(sizes.tolist())), regions.pairs.T.tolist()
    expected = sorted(alive.values())
    while pairs:
        a, b = min(pairs, key=lambda pair: alive[pair[0]] + alive[pair[1]])
        alive[a] += alive.pop(b)
        expected.append(alive[a])
        pairs = [[a if i == b else i for i in pair] for pair in pairs]
        pairs = [pair for pair in pairs if pair[0] != pair[1]]
    assert sorted(hierarchy.size.tolist()) == sorted(expected)


def test_most_boxes_are_those_of_the_papers_order() -> None:
    shared = total = 0
    for seed in range(3):
        regions, labels = made_regions(seed)
        paper = group_slowly(regions, labels, "ctsf", together=False)
        shared += len(as_set(group_regions([(regions, "ctsf")], PIXELS)[0]) & paper)
        total += len(paper)
    assert shared / total > 0.8


def test_one_call_for_everything_equals_separate_calls() -> None:
    one, other = made_regions(1)[0], made_regions(2)[0]
    both = Regions(
        image=torch.cat([one.image, other.image + 1]),
        **{
            name: torch.cat([getattr(one, name), getattr(other, name)])
            for name in ("size", "box", "colour", "texture")
        },
        pairs=torch.cat([one.pairs, other.pairs + 30], dim=1),
    )
    hierarchy, image = group_regions([(both, "ctsf"), (both, "sf")], PIXELS.repeat(2))
    assert image.tolist() == [0, 1, 0, 1]
    for tree, (regions, letters) in enumerate(
        [(one, "ctsf"), (other, "ctsf"), (one, "sf"), (other, "sf")]
    ):
        alone, _ = group_regions([(regions, letters)], PIXELS)
        assert as_set(hierarchy, tree) == as_set(alone)


def test_likeness_by_hand() -> None:
    # Three regions in a row, 2, 2 and 4 pixels; the outer ones do not touch.
    box = torch.tensor([[0.0, 0, 2, 1], [2, 0, 4, 1], [4, 0, 8, 1]])
    colour = torch.tensor([[1.0, 0], [0.75, 0.25], [0, 1]])
    regions = Regions(
        torch.zeros(3, dtype=torch.int64), torch.tensor([2.0, 2, 4]), box, colour,
        torch.ones(3, 1), torch.tensor([[0, 1], [1, 2]]),
    )  # fmt: skip
    hierarchy, _ = group_regions([(regions, "cs")], torch.tensor([8]))
    # first and second: (0.75 + 1 - 4 / 8) / 2; their union, 0.875 and 0.125, with the third:
    # (0.125 + 1 - 8 / 8) / 2
    assert hierarchy.likeness.tolist() == [0.625, 0.625, 0.0625, 0.0625, 0]
    assert hierarchy.size.tolist() == [2, 2, 4, 4, 8]
    assert hierarchy.box[3:].tolist() == [[0, 0, 4, 1], [0, 0, 8, 1]]
