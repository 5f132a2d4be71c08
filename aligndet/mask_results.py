"""Masks of detections as COCO writes them: run lengths (RLE) of the image's pixels, as text.

Legend: D detections, S the side of a predicted mask, H x W the image.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pycocotools import mask as coco_mask
from torch import Tensor

from models.mask_head import paste_masks

CHUNK = 2**25  # pixels of the masks that are in memory together


def encode_masks(found: Mapping[str, Tensor], size: tuple[int, int]) -> list[dict[str, Any]]:
    """The masks of an image's detections as COCO's compressed RLE.

    Args:
        found: `masks` (D, S, S), probabilities inside the boxes, and `boxes` (D, 4) xyxy in pixels
            of the image.
        size: (H, W) of the image.

    Returns:
        D dicts of `size` [H, W] and `counts`, a text.
    """
    height, width = size
    encoded = []
    for masks in _pasted(found, size):
        # (H, W, D) in the order that pycocotools takes: the rows of a column lie side by side.
        columns = masks.transpose(1, 2).contiguous().numpy().transpose(2, 1, 0)
        encoded += coco_mask.encode(columns)
    return [{"size": [height, width], "counts": e["counts"].decode()} for e in encoded]


def mask_area(mask: Mapping[str, Any]) -> float:
    """The pixels of a mask from `encode_masks`."""
    return float(coco_mask.area(mask))


def _pasted(found: Mapping[str, Tensor], size: tuple[int, int]) -> Iterator[Tensor]:
    """The masks in the image, (D, H, W) uint8, some at a time."""
    chunk = max(1, CHUNK // (size[0] * size[1]))
    masks, boxes = found["masks"].cpu().split(chunk), found["boxes"].cpu().split(chunk)
    for some, their_boxes in zip(masks, boxes, strict=True):
        if len(some):
            yield paste_masks(some, their_boxes, size)
