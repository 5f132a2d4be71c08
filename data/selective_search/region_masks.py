"""Which pixels the regions of selective search have, told only for those that are asked for.

A region is a set of segments of an over-segmentation. If the segments of a tree are listed in such
an order that the two parts of each merge stand side by side, every region of the tree is a run of
this list, so that two numbers describe it. The order is found by walking the tree from its last
merge down: the first part of a merge takes the first places, the other part those that follow.

Legend: N images, T trees (an image under one notion of similarity), G regions given and merged,
L segments of an image, H, W height and width, P boxes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from data.selective_search.grouping import Hierarchy


@dataclass(frozen=True)
class RegionMasks:
    """The regions behind the boxes of one image, in the boxes' order, on the CPU."""

    maps: Sequence[Tensor]  # (H, W) int32 segment 0..L-1 of each pixel, by strategy
    places: Sequence[Tensor]  # (L,) int64 places of the segments in the list, by tree
    strategy_of: Sequence[int]  # of each tree its strategy
    tree: Tensor  # (P,) int64, of each box its region's tree
    first: Tensor  # (P,) int64 first place of the region's run of segments
    count: Tensor  # (P,) int64 segments of the region

    @classmethod
    def empty(cls) -> RegionMasks:
        """Of no box."""
        nothing = torch.zeros(0, dtype=torch.int64)
        return cls((), (), (), nothing, nothing, nothing)

    def __len__(self) -> int:
        return len(self.tree)

    def segments(self, index: int) -> Tensor:
        """(L,) bool, the segments that make up the region of box `index`."""
        place = self.places[int(self.tree[index])]
        first, count = int(self.first[index]), int(self.count[index])
        return (place >= first) & (place < first + count)

    def decode(self, index: int) -> Tensor:
        """(H, W) bool, the pixels of the region of box `index`; the box is the tight one."""
        pixels = self.maps[self.strategy_of[int(self.tree[index])]]
        return self.segments(index).index_select(0, pixels.flatten()).view_as(pixels)


def collect_regions(
    hierarchy: Hierarchy,
    rows: Sequence[Tensor],
    maps: Sequence[Tensor],
    strategy_of: Sequence[int],
    sizes: Sequence[tuple[int, int]],
) -> list[RegionMasks]:
    """The regions of each image of a batch.

    Args:
        hierarchy: of all trees; tree `part * N + image`.
        rows: for each image (P,) rows of the hierarchy.
        maps: (N, H, W) int32 segments by strategy, numbered through all images, -1 outside of them.
        strategy_of: of each part its strategy.
        sizes: (height, width) of the images, which lie in the upper left corner of `maps`.
    """
    images = len(sizes)
    first, count = lay_out(hierarchy)
    given = len(hierarchy) - sum(len(one) for one, _ in hierarchy.merges)
    trees = len(strategy_of) * images
    segments = torch.bincount(hierarchy.tree[:given], minlength=trees)  # (T,)
    places = first[:given].cpu().split(segments.tolist())
    segments = segments.view(-1, images).cpu()
    starts = segments.cumsum(1) - segments  # number of the first segment of each image
    chosen = torch.cat(list(rows))
    columns = torch.stack([hierarchy.tree // images, first, count])
    columns = columns.index_select(1, chosen).cpu().split([len(own) for own in rows], dim=1)
    maps = [numbers.cpu() for numbers in maps]
    found = []
    for image, (height, width) in enumerate(sizes):
        own = [
            maps[strategy][image, :height, :width] - starts[strategy_of.index(strategy), image]
            for strategy in range(len(maps))
        ]
        found.append(RegionMasks(own, places[image::images], strategy_of, *columns[image]))
    return found


def lay_out(hierarchy: Hierarchy) -> tuple[Tensor, Tensor]:
    """The run of segments of each region.

    Returns:
        (G,) int64 first place in the list of its tree's segments, and (G,) int64 how many follow,
        itself included.
    """
    count = torch.ones_like(hierarchy.tree)
    made = len(hierarchy) - sum(len(one) for one, _ in hierarchy.merges)
    for one, other in hierarchy.merges:
        count[made : made + len(one)] = count.index_select(0, one) + count.index_select(0, other)
        made += len(one)
    first = torch.zeros_like(count)
    for one, other in reversed(hierarchy.merges):
        made -= len(one)
        start = first[made : made + len(one)].clone()
        first.index_copy_(0, one, start)
        first.index_copy_(0, other, start + count.index_select(0, one))
    return first, count
