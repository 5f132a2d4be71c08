"""Graph-based over-segmentation of a batch of images: small regions of even colour.

Source: Felzenszwalb and Huttenlocher, "Efficient Graph-Based Image Segmentation", IJCV 2004.
Pixels are nodes; neighbouring pixels are joined by an edge whose weight is their colour difference.
An edge merges the two regions at its ends if it is no heavier than the threshold of either region,

    threshold(R) = heaviest edge merged inside R so far + scale / pixels of R,

and the paper visits the edges one by one, from light to heavy. Here the edges of all images are
visited together in a few dozen levels of weight. In each round of a level, every region takes its
lightest edge among those that pass the test, and all regions joined by such edges become one. The
thresholds are those from before the round, so the paper's order is kept between levels and given
up within them.

An image gives the same numbers in any batch: sums are of multiples of 1/16 and so exact, and
everything else is element by element.

Legend: N images, C channels, H, W height and width, E edges, R regions.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

REFERENCE_PIXELS = 320 * 240  # smaller images are segmented as if they had this many
FIRST_LEVEL, LEVEL_RATIO, LAST_LEVEL = 1.0, 1.3, 450.0  # colour differences; black-white is 442
ROUNDS = 2  # of merging per level; equal colours get as many as it takes
NOTHING = torch.iinfo(torch.int64).max  # the lightest edge of a region that has none


@dataclass(frozen=True)
class Segmentation:
    """The regions of a batch; the numbers run through all images, first image first."""

    labels: Tensor  # (N, H, W) int64 region numbers 0..R-1; -1 outside the image
    count: int  # R
    pairs: Tensor  # (2, pairs) int64 numbers of neighbours, lower first, each pair once


@dataclass
class Edges:
    """Edges between nodes (pixels at first, regions later), (E,) each."""

    first: Tensor
    second: Tensor
    weight: Tensor  # colour distance
    key: Tensor  # int64, ordered like the weight, and no two of an image are equal

    def select(self, chosen: Tensor) -> Edges:
        """The edges where the mask (E,) is set."""
        where = chosen.nonzero()[:, 0]
        return Edges(*(part.index_select(0, where) for part in vars(self).values()))

    def renumbered(self, number: Tensor) -> Edges:
        """The same edges between the nodes' new numbers; those within one node are dropped."""
        first = number.index_select(0, self.first)
        second = number.index_select(0, self.second)
        return Edges(first, second, self.weight, self.key).select(first != second)


def segment(colours: Tensor, inside: Tensor, scale: float, min_size: int) -> Segmentation:
    """Cut every image into regions.

    Args:
        colours: (N, C, H, W) float32, channels of similar range; 0..255 fits the usual scales.
        inside: (N, H, W) bool, false where an image is padded. Padding repeats the border.
        scale: k of the paper, in colour difference x pixels; larger gives larger regions.
        min_size: regions of fewer pixels are joined to their most similar neighbour.

    In images of fewer than 320 x 240 pixels a pixel counts for more than one, so that the number
    of regions depends on what an image shows and hardly on how large it is.
    """
    edges = grid_edges(blur(colours), inside)
    region, size, edges = _grow(edges, _pixel_sizes(inside), scale)
    absorbed, size, edges = _absorb_small(edges, size, min_size)
    labels = torch.full(inside.shape, -1, device=colours.device)
    labels[inside] = absorbed.index_select(0, region)
    return Segmentation(labels, len(size), unique_pairs(edges.first, edges.second))


def _pixel_sizes(inside: Tensor) -> Tensor:
    """What each pixel inside counts for: at least 1, in sixteenths, so that sums are exact."""
    pixels = inside.flatten(1).sum(dim=1)
    counts_for = (16 * REFERENCE_PIXELS / pixels).round().clamp(min=16) / 16
    return counts_for.repeat_interleave(pixels)


def blur(image: Tensor) -> Tensor:
    """Smooth (N, C, H, W) with 1-2-1 along both axes and round to quarters of a level."""
    for axis in (2, 3):
        length = image.shape[axis]
        before, after = image.narrow(axis, 0, 1), image.narrow(axis, length - 1, 1)
        padded = torch.cat([before, image, after], dim=axis)
        neighbours = padded.narrow(axis, 0, length) + padded.narrow(axis, 2, length)
        image = (neighbours + 2 * image) / 4
    return (image * 4).round() / 4


def grid_edges(image: Tensor, inside: Tensor) -> Edges:
    """Edges between each pixel and those to its right and below it.

    Nodes are the pixels inside, numbered row by row, image by image.
    """
    number = inside.flatten().cumsum(0).view(inside.shape) - 1
    height, width = inside.shape[1:]
    row = torch.arange(height, device=image.device)[:, None]
    place = (row << 14) | torch.arange(width, device=image.device)  # (H, W)
    parts = []
    for axis in (2, 1):  # to the right, then down
        near, far = slice(None, -1), slice(1, None)
        head = (..., near) if axis == 2 else (..., near, slice(None))
        tail = (..., far) if axis == 2 else (..., far, slice(None))
        both = inside[head] & inside[tail]
        difference = image[head] - image[tail]
        weight = (difference * difference).sum(dim=1).sqrt()[both]
        # Equal weights are ordered by a scrambled place: in order of the places, an even surface
        # would grow by one pixel per round.
        scrambled = ((place[head] | (axis << 28)) * 2654435761) & 0xFFFFFFFF
        key = weight.view(torch.int32).long() << 32 | scrambled.expand_as(both)[both]
        parts.append((number[head][both], number[tail][both], weight, key))
    return Edges(*(torch.cat(part) for part in zip(*parts, strict=True)))


def _grow(edges: Edges, size: Tensor, scale: float) -> tuple[Tensor, Tensor, Edges]:
    """Merge pixels of the given sizes, level by level.

    Returns:
        (pixels,) region numbers; (R,) sizes; the edges between regions.
    """
    heaviest = torch.zeros_like(size)  # edge merged inside a region
    region = torch.arange(len(size), device=size.device)
    since = region  # edges name regions of some rounds ago; this gives their numbers now
    below = -1.0
    for level in _levels():
        now = edges.select((edges.weight > below) & (edges.weight <= level)).renumbered(since)
        for _ in range(ROUNDS) if level else itertools.count():
            threshold = heaviest + scale / size
            bound = torch.minimum(*(threshold.index_select(0, e) for e in (now.first, now.second)))
            now = now.select(now.weight <= bound)
            if not len(now.weight):
                break
            new, taken = _merge(now, len(size))
            merged = now.select(taken)
            size = _sum(size, new)
            heaviest = torch.zeros_like(size).scatter_reduce_(0, new, heaviest, "amax")
            heaviest.scatter_reduce_(0, new[merged.first], merged.weight, "amax")
            since = new.index_select(0, since)
            now = now.renumbered(new)
        below = level
        if 2 * len(size) < len(since):  # so that renumbering costs little in total
            edges = edges.renumbered(since)
            region = since.index_select(0, region)
            since = torch.arange(len(size), device=size.device)
    return since.index_select(0, region), size, edges.renumbered(since)


def _levels() -> list[float]:
    """Weights that end a level; the level of equal colours has as many rounds as it takes."""
    levels = [0.0, FIRST_LEVEL]
    while levels[-1] < LAST_LEVEL:
        levels.append(levels[-1] * LEVEL_RATIO)
    return levels


def _absorb_small(edges: Edges, size: Tensor, min_size: int) -> tuple[Tensor, Tensor, Edges]:
    """Join regions of fewer pixels to their most similar neighbour; returns the same as `_grow`."""
    number = torch.arange(len(size), device=size.device)
    while True:
        small = size < min_size
        now = edges.select(small[edges.first] | small[edges.second])
        if not len(now.weight):
            return number, size, edges
        new, _ = _merge(now, len(size), small)
        size = _sum(size, new)
        number = new.index_select(0, number)
        edges = edges.renumbered(new)


def _merge(edges: Edges, count: int, choosing: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Let every region take its lightest edge, and join what is connected by taken edges.

    Args:
        edges: those that may be taken.
        count: regions.
        choosing: (count,) bool, regions that take one; all of them by default.

    Returns:
        (count,) new numbers, in order of the root of each group; (E,) which edges were taken.
    """
    lightest = torch.full((count,), NOTHING, device=edges.key.device)
    lightest.scatter_reduce_(0, edges.first, edges.key, "amin")
    lightest.scatter_reduce_(0, edges.second, edges.key, "amin")
    by_first = lightest.index_select(0, edges.first) == edges.key
    by_second = lightest.index_select(0, edges.second) == edges.key
    if choosing is not None:
        by_first &= choosing[edges.first]
        by_second &= choosing[edges.second]
    parent = torch.arange(count, device=edges.key.device)
    one, other = edges.select(by_second), edges.select(by_first)
    parent[one.second] = one.first
    parent[other.first] = other.second
    # No two keys are equal, so the only cycles are edges that both of their ends took.
    both = edges.select(by_first & by_second)
    parent[both.first] = both.first
    return _number_groups(parent), by_first | by_second


def _number_groups(parent: Tensor) -> Tensor:
    """From (R,) parents without cycles to (R,) numbers of their trees, in order of the roots."""
    while True:
        above = parent.index_select(0, parent)
        if torch.equal(above, parent):
            break
        parent = above
    is_root = parent == torch.arange(len(parent), device=parent.device)
    return (is_root.cumsum(0) - 1).index_select(0, parent)


def _sum(values: Tensor, new: Tensor) -> Tensor:
    """Sums of (R,) values by new number."""
    return torch.zeros(int(new.max()) + 1, device=values.device).index_add_(0, new, values)


def unique_pairs(first: Tensor, second: Tensor) -> Tensor:
    """(2, pairs) numbers of nodes joined by edges, lower first, sorted, each pair once."""
    low, high = torch.minimum(first, second), torch.maximum(first, second)
    base = int(high.max()) + 1 if len(high) else 1
    code = torch.unique(low * base + high)
    return torch.stack([code // base, code % base])
