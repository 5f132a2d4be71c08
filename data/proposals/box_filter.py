"""Choose an image's proposals: the filter `ratio3size0008` and the NMS of AlignDet.

Source: arXiv 2307.11077 and the authors' released proposals.

Legend: P proposals.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import nms

COCO_SIDE = 640  # longer side of most COCO photos, pixels


@dataclass(frozen=True)
class BoxFilter:
    """Which boxes stay; the default is `ratio3size0008`."""

    max_ratio: float = 3.0  # longer side / shorter side, at most
    min_extent: float = 0.0  # sqrt(box area / image area), at least
    max_extent: float = 0.8  # the same, at most
    min_side: float = 32.0  # width and height in pixels, at least, if the longer image side is 640


def parse_filter(text: str, min_side: float = 32.0) -> BoxFilter | None:
    """Read `ratio<R>size<AABB>` or `none`.

    `R` is the largest ratio of the sides; `AA` and `BB` bound sqrt(box area / image area) in
    tenths, so `ratio3size0008` keeps 1/3 <= w/h <= 3 and 0.0 <= sqrt(wh / WH) <= 0.8.

    Raises:
        ValueError: the text has another form, a ratio below 1, or AA not below BB.
    """
    if text == "none":
        return None
    match = re.fullmatch(r"ratio(\d+(?:\.\d+)?)size(\d\d)(\d\d)", text)
    if match:
        ratio, low, high = float(match[1]), int(match[2]) / 10, int(match[3]) / 10
        if ratio >= 1 and low < high:
            return BoxFilter(ratio, low, high, min_side)
    raise ValueError(
        f"--filter {text!r} is not of the form ratio<R>size<AABB> with R >= 1 and AA < BB in "
        "tenths; use, for example, ratio3size0008, or none"
    )


def filter_boxes(boxes: Tensor, height: int, width: int, box_filter: BoxFilter) -> Tensor:
    """Boxes of an image that pass the filter, order kept: (P, 4) xyxy to (at most P, 4)."""
    return boxes[passes_filter(boxes, height, width, box_filter)]


def passes_filter(boxes: Tensor, height: int, width: int, box_filter: BoxFilter) -> Tensor:
    """(P,) bool, whether boxes (P, 4) of an image pass the filter."""
    w, h = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    min_side = box_filter.min_side * max(height, width) / COCO_SIDE
    extent = (w * h / (height * width)).sqrt()
    large = (w >= min_side) & (h >= min_side) & (extent >= box_filter.min_extent)
    narrow = (w > box_filter.max_ratio * h) | (h > box_filter.max_ratio * w)
    return large & ~narrow & (extent <= box_filter.max_extent)


def without_overlaps(boxes: Tensor, iou: float) -> Tensor:
    """(at most P,) rows of boxes (P, 4), best first, without those whose IoU with a better kept one
    exceeds `iou`; order kept."""
    rank = torch.arange(len(boxes), device=boxes.device)
    return nms(boxes, -rank.float(), iou)
