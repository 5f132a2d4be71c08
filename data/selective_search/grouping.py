"""Greedy grouping: neighbouring regions are merged, the most similar first, until one is left.

Source: Uijlings et al., "Selective Search for Object Recognition", IJCV 2013, Algorithm 1 and
Equations 2 to 6.

The paper merges one pair at a time. Here every round merges all pairs whose regions are each
other's most similar neighbour, in all images and for all notions of similarity at once. Such a
pair could be torn apart only by a merge elsewhere that gives one of the two an even more similar
neighbour, which is rare: a union resembles others about as much as its parts do. So the hierarchies
are nearly the paper's, in a few dozen rounds.

Legend: T trees (an image under one notion of similarity), R regions, G regions given and
merged, E pairs of neighbours, F histogram bins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from data.selective_search.region_features import Regions, round_histogram
from data.selective_search.segmentation import unique_pairs

MEASURES = "ctsf"  # colour, texture, size, fill


@dataclass
class Hierarchy:
    """All regions of all trees, given and merged, (G, ...) each."""

    tree: Tensor  # (G,) int64
    size: Tensor  # (G,) float32 pixels
    box: Tensor  # (G, 4) float32 xyxy
    likeness: Tensor  # (G,) mean measure, 0..1, with the region it merged with; 0 for the last
    # Rows of the two parts of each merge, round by round; the rows that they make follow the given
    # ones in this order.
    merges: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.size)


def group_regions(parts: Sequence[tuple[Regions, str]], pixels: Tensor) -> tuple[Hierarchy, Tensor]:
    """Group regions of a batch of images under several notions of similarity.

    Args:
        parts: regions of the batch and what to compare them by, letters of `MEASURES`.
        pixels: (N,) number of pixels in every image.

    Returns:
        The hierarchies and the image (T,) of each tree; tree `part * N + image`.
    """
    count = len(pixels)
    forest = _Forest(parts, pixels)
    similarity = forest.similarity(forest.pairs)
    while forest.pairs.shape[1]:
        similarity = forest.merge(_mutual_best(forest.pairs, similarity, forest.count), similarity)
    image = torch.arange(count, device=pixels.device).repeat(len(parts))
    return forest.hierarchy(), image


def _mutual_best(pairs: Tensor, similarity: Tensor, count: int) -> Tensor:
    """(E,) whether each of the two regions has no more similar neighbour than the other."""
    rank = torch.empty_like(pairs[0])
    rank[similarity.argsort(stable=True)] = torch.arange(len(rank), device=rank.device)
    best = torch.full((count,), -1, device=rank.device)
    for side in pairs:
        best.scatter_reduce_(0, side, rank, "amax")
    return (best[pairs[0]] == rank) & (best[pairs[1]] == rank)


class _Forest:
    """The state of the grouping; rows of merged regions follow those of the given ones."""

    def __init__(self, parts: Sequence[tuple[Regions, str]], pixels: Tensor) -> None:
        regions = [part for part, _ in parts]
        trees = [part.image + i * len(pixels) for i, part in enumerate(regions)]
        starts = torch.tensor([0] + [len(part.size) for part in regions]).cumsum(0).tolist()
        self.count = starts[-1]
        self.tree = _with_room(torch.cat(trees))
        self.size = _with_room(torch.cat([part.size for part in regions]))
        self.box = _with_room(torch.cat([part.box for part in regions]))
        histograms = [torch.cat([part.colour, part.texture], dim=1) for part in regions]
        self.histogram = _with_room(torch.cat(histograms))
        self.colour_bins = regions[0].colour.shape[1]  # of the histogram; the rest is texture
        self.likeness = torch.zeros_like(self.size)
        numbered = zip(regions, starts[:-1], strict=True)
        self.pairs = torch.cat([r.pairs + start for r, start in numbered], dim=1)  # (2, E)
        use = [[float(letter in letters) for letter in MEASURES] for _, letters in parts]
        self.use = torch.tensor(use, device=pixels.device).repeat_interleave(len(pixels), dim=0)
        self.pixels = pixels.float().repeat(len(parts))  # (T,) of the tree's image
        self.merges: list[tuple[Tensor, Tensor]] = []

    def similarity(self, pairs: Tensor) -> Tensor:
        """(E,) mean of the tree's measures, each in 0..1."""
        one, other = pairs
        tree = self.tree.index_select(0, one)
        pixels, use = self.pixels.index_select(0, tree), self.use.index_select(0, tree)
        both = self.size.index_select(0, one) + self.size.index_select(0, other)
        box = self._union(one, other)
        around = (box[:, 2:] - box[:, :2]).prod(dim=1)
        histograms = (self.histogram.index_select(0, end) for end in (one, other))
        common = torch.minimum(*histograms)
        measures = [
            common[:, : self.colour_bins].sum(dim=1),
            common[:, self.colour_bins :].sum(dim=1),
            1 - both / pixels,
            1 - (around - both) / pixels,
        ]
        total = torch.zeros_like(both)
        for measure, used in zip(measures, use.unbind(dim=1), strict=True):
            total = total + used * measure
        return total / use.sum(dim=1)

    def _union(self, one: Tensor, other: Tensor) -> Tensor:
        """(E, 4) boxes around two regions each."""
        first, second = self.box.index_select(0, one), self.box.index_select(0, other)
        left_top = torch.minimum(first[:, :2], second[:, :2])
        return torch.cat([left_top, torch.maximum(first[:, 2:], second[:, 2:])], dim=1)

    def merge(self, chosen: Tensor, similarity: Tensor) -> Tensor:
        """Merge the chosen pairs, no two of which share a region; returns the new similarities."""
        where = chosen.nonzero()[:, 0]
        one, other = self.pairs.index_select(1, where)
        self.merges.append((one, other))
        start, self.count = self.count, self.count + len(where)
        made = slice(start, self.count)
        sizes = self.size.index_select(0, one), self.size.index_select(0, other)
        both = sizes[0] + sizes[1]
        shares = (
            self.histogram.index_select(0, region) * size[:, None]
            for region, size in zip((one, other), sizes, strict=True)
        )
        self.histogram[made] = round_histogram(sum(shares) / both[:, None])
        self.size[made] = both
        self.box[made] = self._union(one, other)
        self.tree[made] = self.tree.index_select(0, one)
        number = torch.arange(self.count, device=one.device)
        new = torch.arange(start, self.count, device=one.device)
        alike = similarity.index_select(0, where)
        for region in (one, other):
            self.likeness.index_copy_(0, region, alike)
            number.index_copy_(0, region, new)
        renamed = number.index_select(0, self.pairs.flatten()).view(2, -1)
        same = (renamed == self.pairs).all(dim=0)
        changed = (~same & (renamed[0] != renamed[1])).nonzero()[:, 0]
        changed = unique_pairs(*renamed.index_select(1, changed))
        same = same.nonzero()[:, 0]
        self.pairs = torch.cat([self.pairs.index_select(1, same), changed], dim=1)
        return torch.cat([similarity.index_select(0, same), self.similarity(changed)])

    def hierarchy(self) -> Hierarchy:
        """The regions made so far."""
        rows = (self.tree, self.size, self.box, self.likeness)
        return Hierarchy(*(row[: self.count] for row in rows), self.merges)


def _with_room(rows: Tensor) -> Tensor:
    """Append a row for every merge to come; a tree of R regions has R - 1."""
    return torch.cat([rows, torch.zeros_like(rows)])
