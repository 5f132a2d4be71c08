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

An image gives the same numbers in any batch and on any device: sums are of multiples of 1/16 and so
exact, if there are at most 2^24 pixels; everything else is element by element and rounded as IEEE
754 asks for, or a minimum or maximum. A merge takes a few thousand edges; nothing else is touched.

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
    pairs: Tensor  # (2, pairs) int64 numbers of neighbours, lower first, sorted, each pair once

    def split(self, parts: int) -> list[Segmentation]:
        """Segmentations of as many images each, whose numbers start at 0 again."""
        if parts == 1:
            return [self]
        ends = self.labels.view(parts, -1).amax(dim=1) + 1
        pair_ends = torch.searchsorted(self.pairs[0].contiguous(), ends)
        ends, pair_ends = torch.stack([ends, pair_ends]).tolist()
        found, start, first_pair = [], 0, 0
        for labels, end, last_pair in zip(self.labels.chunk(parts), ends, pair_ends, strict=True):
            own = torch.where(labels < 0, -1, labels - start)
            found.append(
                Segmentation(own, end - start, self.pairs[:, first_pair:last_pair] - start)
            )
            start, first_pair = end, last_pair
        return found


@dataclass(frozen=True)
class Edges:
    """Edges between nodes: pixels, or regions under the number of one of their pixels."""

    ends: Tensor  # (2, E) int64
    weight: Tensor  # (E,) float32 colour distance
    key: Tensor  # (E,) int64, ordered like the weight, and no two of an image are equal

    def select(self, chosen: Tensor) -> Edges:
        """The edges where the mask (E,) is set."""
        return self.take(chosen.nonzero()[:, 0])

    def take(self, where: Tensor) -> Edges:
        """The edges at the places (any number,)."""
        ends, rest = self.ends.index_select(1, where), (self.weight, self.key)
        return Edges(ends, *(part.index_select(0, where) for part in rest))

    def part(self, start: int, stop: int) -> Edges:
        """The edges from place `start` up to `stop`, which is left out."""
        return Edges(self.ends[:, start:stop], self.weight[start:stop], self.key[start:stop])

    def __len__(self) -> int:
        return len(self.weight)


def segment(colours: Tensor, inside: Tensor, scale: Tensor, min_size: Tensor) -> Segmentation:
    """Cut every image into regions.

    Args:
        colours: (N, C, H, W) float32, channels of similar range; 0..255 fits the usual scales.
        inside: (N, H, W) bool, false where an image is padded. Padding repeats the border.
        scale: (N,) k of the paper, in colour difference x pixels; larger gives larger regions.
        min_size: (N,) regions of fewer pixels are joined to their most similar neighbour.

    In images of fewer than 320 x 240 pixels a pixel counts for more than one, so that the number
    of regions depends on what an image shows and hardly on how large it is.
    """
    edges = grid_edges(blur(colours), inside)
    pixels = inside.flatten(1).sum(dim=1)
    regions = _Regions(pixel_sizes(pixels).repeat_interleave(pixels))
    _grow(regions, edges, scale.repeat_interleave(pixels))
    apart = _absorb_small(regions, edges, min_size.repeat_interleave(pixels))
    is_root = regions.root == torch.arange(len(regions.root), device=colours.device)
    number = is_root.cumsum(0) - 1  # of a region by its root
    labels = torch.full(inside.shape, -1, device=colours.device)
    labels[inside] = number.index_select(0, regions.root)
    pairs = unique_pairs(*number.index_select(0, apart.ends.flatten()).view(2, -1))
    return Segmentation(labels, int(number[-1]) + 1, pairs)


def pixel_sizes(pixels: Tensor) -> Tensor:
    """(N,) what a pixel counts for in images of so many (N,): at least 1, and in sixteenths, so
    that sums are exact."""
    return (16 * REFERENCE_PIXELS / pixels).round().clamp(min=16) / 16


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
        weight = root((difference * difference).sum(dim=1)[both])
        # Equal weights are ordered by a scrambled place: in order of the places, an even surface
        # would grow by one pixel per round.
        scrambled = ((place[head] | (axis << 28)) * 2654435761) & 0xFFFFFFFF
        key = weight.view(torch.int32).long() << 32 | scrambled.expand_as(both)[both]
        parts.append((torch.stack([number[head][both], number[tail][both]]), weight, key))
    return Edges(*(torch.cat(part, dim=-1) for part in zip(*parts, strict=True)))


def root(squared: Tensor) -> Tensor:
    """Square roots in float32, rounded correctly; on some processors `sqrt` is off by a bit."""
    return squared.double().sqrt().float()


class _Regions:
    """The regions of a batch while they grow.

    A region goes by the number of one of its pixels, its root. `size` and `heaviest` are up to date
    for roots only, so that a round touches the regions that it merges and no others.
    """

    def __init__(self, size: Tensor) -> None:
        self.root = torch.arange(len(size), device=size.device)  # (pixels,) of every pixel's region
        self.size = size  # (pixels,) float32
        self.heaviest = torch.zeros_like(size)  # edge merged inside the region
        self._lightest = torch.full_like(self.root, NOTHING)  # edge of a region; only in `merge`

    def between(self, edges: Edges) -> Edges:
        """The same edges between the regions of their ends; those within one region are dropped."""
        ends = self.root.index_select(0, edges.ends.flatten()).view(2, -1)
        return Edges(ends, edges.weight, edges.key).select(ends[0] != ends[1])

    def merge(self, edges: Edges, choosing: Tensor | None = None) -> None:
        """Let every region take its lightest edge, and join what is connected by taken edges.

        Args:
            edges: those that may be taken, between regions.
            choosing: (2, E) bool, whether the region at that end takes one; all do by default.
        """
        ends, key = edges.ends.flatten(), edges.key.repeat(2)
        self._lightest.scatter_reduce_(0, ends, key, "amin")
        taken = (self._lightest.index_select(0, ends) == key).view(2, -1)
        self._lightest.index_fill_(0, ends, NOTHING)
        if choosing is not None:
            taken &= choosing
        # No two keys are equal, so the only cycles are edges that both of their ends took; the
        # first end of such an edge stays where it is.
        taken[0] &= ~taken[1]
        where = taken.flatten().nonzero()[:, 0]
        moved = ends.index_select(0, where)
        to = edges.ends.flip(0).flatten().index_select(0, where)
        self.root.index_copy_(0, moved, to)
        while not torch.equal(further := self.root.index_select(0, to), to):
            to = further
            self.root.index_copy_(0, moved, to)
        self.root = self.root.index_select(0, self.root)
        weight = edges.weight.repeat(2).index_select(0, where)
        heaviest = torch.maximum(weight, self.heaviest.index_select(0, moved))
        self.heaviest.scatter_reduce_(0, to, heaviest, "amax")
        self.size.index_add_(0, to, self.size.index_select(0, moved))


def _grow(regions: _Regions, edges: Edges, scale: Tensor) -> None:
    """Merge pixels, level by level; `scale` (pixels,)."""
    # Weights are not negative, so their bits are ordered like them, and quicker to sort.
    edges = edges.take(edges.weight.view(torch.int32).argsort(stable=True))
    levels = _levels()
    ends = torch.tensor(levels, device=edges.weight.device)
    stops = torch.searchsorted(edges.weight, ends, right=True).tolist()
    for level, (start, stop) in zip(levels, itertools.pairwise([0, *stops]), strict=True):
        now = regions.between(edges.part(start, stop))
        for _ in range(ROUNDS) if level else itertools.count():
            now = now.select(now.weight <= _threshold(regions, now.ends, scale))
            if not len(now):
                break
            regions.merge(now)
            now = regions.between(now)


def _threshold(regions: _Regions, ends: Tensor, scale: Tensor) -> Tensor:
    """(E,) the lower threshold of the regions at the ends (2, E) of edges."""
    ends = ends.flatten()
    # Not as a quotient: the boxes of earlier versions hang on this rounding.
    extra = regions.size.index_select(0, ends).reciprocal() * scale.index_select(0, ends)
    one, other = (regions.heaviest.index_select(0, ends) + extra).view(2, -1)
    return torch.minimum(one, other)


def _levels() -> list[float]:
    """Weights that end a level; the level of equal colours has as many rounds as it takes."""
    levels = [0.0, FIRST_LEVEL]
    while levels[-1] < LAST_LEVEL:
        levels.append(levels[-1] * LEVEL_RATIO)
    return levels


def _absorb_small(regions: _Regions, edges: Edges, min_size: Tensor) -> Edges:
    """Join regions smaller than `min_size` (pixels,) to their most similar neighbour.

    Returns:
        The edges between the regions that are left.
    """
    edges = regions.between(edges)
    while True:
        ends = edges.ends.flatten()
        small = regions.size.index_select(0, ends) < min_size.index_select(0, ends)
        where = small.view(2, -1).any(dim=0).nonzero()[:, 0]
        if not len(where):
            return edges
        regions.merge(edges.take(where), small.view(2, -1).index_select(1, where))
        edges = regions.between(edges)


def unique_pairs(first: Tensor, second: Tensor) -> Tensor:
    """(2, pairs) numbers of nodes joined by edges, lower first, sorted, each pair once."""
    low, high = torch.minimum(first, second), torch.maximum(first, second)
    base = int(high.max()) + 1 if len(high) else 1
    code = torch.unique(low * base + high)
    return torch.stack([code // base, code % base])
