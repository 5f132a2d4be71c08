"""Make the boxes that pre-training learns from: selective search, filter, NMS.

Legend: P proposals.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from data.proposals.box_filter import BoxFilter, filter_boxes, suppress_overlaps
from data.selective_search import SEARCHES, selective_search

# Kept boxes are not reused when it differs. Raise it when a change to the search, the filter or
# the decoding of images gives an image other boxes.
SEARCH_VERSION = 2
CPU = torch.device("cpu")


@dataclass(frozen=True)
class ProposalSettings:
    """How the boxes of one image are made."""

    box_filter: BoxFilter | None = field(default_factory=BoxFilter)  # None keeps every box
    nms_iou: float = 0.5  # the lower-ranked of two boxes that overlap more goes; 1 keeps both
    max_boxes: int | None = None  # keep this many of the best; None keeps all
    search: str = "thorough"  # key of SEARCHES; fast takes a quarter of the time
    search_side: int = 320  # the longer side of larger images is shrunk to this for the search

    def __post_init__(self) -> None:
        if self.search not in SEARCHES:
            raise ValueError(f"search {self.search!r} is unknown; use {' or '.join(SEARCHES)}")


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
    sizes = [(image.shape[-2], image.shape[-1]) for image in images]
    small = [shrink(image, settings.search_side) for image in images]
    return propose_shrunk(small, sizes, settings, device)


def propose_shrunk(
    small: Sequence[Tensor],
    sizes: Sequence[tuple[int, int]],
    settings: ProposalSettings,
    device: torch.device = CPU,
) -> list[Tensor]:
    """The same for images that `shrink` has made from larger ones of `sizes` (height, width)."""
    found = selective_search([image.to(device) for image in small], SEARCHES[settings.search])
    # On the CPU from here on: after stretching, CUDA would round overlaps otherwise.
    boxes = torch.cat([*found, torch.zeros(0, 4, device=device)]).cpu().split([*map(len, found), 0])
    chosen = []
    for image, (height, width), own in zip(small, sizes, boxes, strict=False):
        stretch = torch.tensor([width / image.shape[-1], height / image.shape[-2]])
        chosen.append(choose(own * stretch.repeat(2), (height, width), settings))
    return chosen


def choose(boxes: Tensor, size: tuple[int, int], settings: ProposalSettings) -> Tensor:
    """Apply the filter, NMS and the limit to boxes (P, 4) of an image of `size` (height, width)."""
    if settings.box_filter is not None:
        boxes = filter_boxes(boxes, *size, settings.box_filter)
    return suppress_overlaps(boxes, settings.nms_iou)[: settings.max_boxes]


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
