"""Make the boxes that pre-training learns from: selective search, filter, NMS.

Legend: P proposals.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor
from torch.nn import functional

from data.proposals.box_filter import BoxFilter, filter_boxes, suppress_overlaps
from data.selective_search import SEARCHES, selective_search

# Kept boxes are not reused when it differs. Raise it when a change to the search, the filter or
# the decoding of images gives an image other boxes.
SEARCH_VERSION = 2


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
    images: Sequence[Tensor], settings: ProposalSettings = ProposalSettings()
) -> list[Tensor]:
    """Boxes of images that may differ in size; an image's boxes do not depend on the others.

    Args:
        images: (3, H, W) RGB each, uint8 or floats in 0..1.
        settings: filter, NMS and limits.

    Returns:
        For each image (P, 4) float32 xyxy boxes in its pixels, best first; P may be 0.
    """
    small = [_shrink(image, settings.search_side) for image in images]
    found = selective_search(small, SEARCHES[settings.search])
    groups = zip(images, small, found, strict=True)
    return [_select(*group, settings) for group in groups]


def _select(image: Tensor, small: Tensor, boxes: Tensor, settings: ProposalSettings) -> Tensor:
    """Scale boxes from the searched image to the given one and choose among them."""
    height, width = image.shape[-2:]
    stretch = boxes.new_tensor([width / small.shape[-1], height / small.shape[-2]])
    boxes = boxes * stretch.repeat(2)
    if settings.box_filter is not None:
        boxes = filter_boxes(boxes, height, width, settings.box_filter)
    return suppress_overlaps(boxes, settings.nms_iou)[: settings.max_boxes]


def _shrink(image: Tensor, side: int) -> Tensor:
    """Scale (3, H, W) down so that the longer side is at most `side`."""
    height, width = image.shape[-2:]
    scale = side / max(height, width, 1)
    if scale >= 1:
        return image
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    small = functional.interpolate(image[None].float(), size, mode="bilinear", antialias=True)[0]
    top = 1 if image.is_floating_point() else 255
    small = small.clamp(0, top)
    return small if image.is_floating_point() else small.round().to(image.dtype)
