"""Make the boxes that pre-training learns from, and their masks: selective search, filter, NMS.

Legend: P proposals.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from data.enlarged_rle import encode_enlarged
from data.proposals.box_filter import BoxFilter, passes_filter, without_overlaps
from data.selective_search import (
    SEARCHES,
    RegionMasks,
    selective_search,
    selective_search_with_regions,
)

# Kept boxes are not reused when it differs. Raise it when a change to the search, the filter or
# the decoding of images gives an image other boxes.
SEARCH_VERSION = 2
CPU = torch.device("cpu")


@dataclass(frozen=True)
class ProposalSettings:
    """How the proposals of one image are made."""

    box_filter: BoxFilter | None = field(default_factory=BoxFilter)  # None keeps every box
    nms_iou: float = 0.5  # the lower-ranked of two boxes that overlap more goes; 1 keeps both
    max_boxes: int | None = None  # keep this many of the best; None keeps all
    search: str = "thorough"  # key of SEARCHES; fast takes a quarter of the time
    search_side: int = 320  # the longer side of larger images is shrunk to this for the search
    masks: bool = False  # give the boxes masks

    def __post_init__(self) -> None:
        if self.search not in SEARCHES:
            raise ValueError(f"search {self.search!r} is unknown; use {' or '.join(SEARCHES)}")

    def named(self) -> dict[str, Any]:
        """All that the boxes and masks depend on, by name."""
        named = asdict(self)
        if not self.masks:  # left out otherwise: kept boxes of earlier versions stay valid
            del named["masks"]
        return named


class Proposals(NamedTuple):
    """The proposals of an image, best first."""

    boxes: Tensor  # (P, 4) float32 xyxy in its pixels, on the CPU
    masks: list[bytes] | None = None  # P masks of its size, the `counts` of COCO's compressed RLE


def propose(
    images: Sequence[Tensor],
    settings: ProposalSettings = ProposalSettings(),
    device: torch.device = CPU,
) -> list[Tensor]:
    """Boxes of images that may differ in size; an image's boxes do not depend on the others.

    Args:
        images: (3, H, W) RGB each, uint8 or floats in 0..1.
        settings: filter, NMS and limits.
        device: where the search happens; it changes only the speed.

    Returns:
        For each image (P, 4) float32 xyxy boxes in its pixels, best first, on the CPU; P may be 0.
    """
    return [found.boxes for found in find_proposals(images, settings, device)]


def find_proposals(
    images: Sequence[Tensor],
    settings: ProposalSettings = ProposalSettings(),
    device: torch.device = CPU,
) -> list[Proposals]:
    """The same boxes, with masks if the settings ask for them: the pixels of the region that a box
    was drawn around. The box is the tight one of its mask, to half a pixel."""
    sizes = [(image.shape[-2], image.shape[-1]) for image in images]
    small = [shrink(image, settings.search_side) for image in images]
    return propose_shrunk(small, sizes, settings, device)


def propose_shrunk(
    small: Sequence[Tensor],
    sizes: Sequence[tuple[int, int]],
    settings: ProposalSettings,
    device: torch.device = CPU,
) -> list[Proposals]:
    """The same for images that `shrink` has made from larger ones of `sizes` (height, width)."""
    moved, strategies = [image.to(device) for image in small], SEARCHES[settings.search]
    regions: Sequence[RegionMasks | None] = [None] * len(small)
    if settings.masks:
        with_regions = selective_search_with_regions(moved, strategies)
        found, regions = [own for own, _ in with_regions], [own for _, own in with_regions]
    else:
        found = selective_search(moved, strategies)
    # On the CPU from here on: after stretching, CUDA would round overlaps otherwise.
    boxes = torch.cat([*found, torch.zeros(0, 4, device=device)]).cpu().split([*map(len, found), 0])
    chosen = []
    for image, size, own, region in zip(small, sizes, boxes, regions, strict=False):
        stretch = torch.tensor([size[1] / image.shape[-1], size[0] / image.shape[-2]])
        stretched = own * stretch.repeat(2)
        rows = choose(stretched, size, settings)
        masks = None if region is None else _masks(region, rows, size)
        chosen.append(Proposals(stretched[rows], masks))
    return chosen


def _masks(regions: RegionMasks, rows: Tensor, size: tuple[int, int]) -> list[bytes]:
    """The masks of some boxes, by their rows, in an image of `size` (height, width)."""
    return [encode_enlarged(regions.decode(row).numpy(), size) for row in rows.tolist()]


def choose(boxes: Tensor, size: tuple[int, int], settings: ProposalSettings) -> Tensor:
    """Apply the filter, NMS and the limit to boxes (P, 4) of an image of `size` (height, width).

    Returns:
        (at most P,) int64 rows of those that stay, order kept.
    """
    rows = torch.arange(len(boxes))
    if settings.box_filter is not None:
        rows = rows[passes_filter(boxes, *size, settings.box_filter)]
    return rows[without_overlaps(boxes[rows], settings.nms_iou)][: settings.max_boxes]


def shrink(image: Tensor, side: int) -> Tensor:
    """Scale (3, H, W) down so that the longer side is at most `side`; the result is on the CPU,
    where it is computed, as CUDA's rounding differs."""
    height, width = image.shape[-2:]
    image = image.cpu()
    scale = side / max(height, width, 1)
    if scale >= 1:
        return image
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    small = functional.interpolate(image[None].float(), size, mode="bilinear", antialias=True)[0]
    top = 1 if image.is_floating_point() else 255
    small = small.clamp(0, top)
    return small if image.is_floating_point() else small.round().to(image.dtype)
