"""Which boxes of a COCO file can be used in an image, and what is left of them there.

`box_problem` and `part_inside` say it of one box, `judge_boxes` of many at once.

Legend: B boxes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

ROUNDING = 0.5  # pixels that a box may stick out of its image without a word
MIN_SIDE = 0.01  # pixels; float32 coordinates could lose a side smaller than this


def box_problem(bbox: Sequence[float], height: int | None, width: int | None) -> str | None:
    """Why an xywh box cannot be used in an image of this size (None: unknown), or None."""
    x, y, w, h = bbox
    if w <= 0 or h <= 0:
        return "has no area"
    if height is None or width is None:
        return None
    if x >= width or y >= height or x + w <= 0 or y + h <= 0:
        return f"lies outside the image of {width} x {height} pixels"
    if min(min(x + w, width) - max(x, 0), min(y + h, height) - max(y, 0)) < MIN_SIDE:
        return "has next to no area inside the image"
    return None


def part_inside(bbox: Sequence[float], height: int | None, width: int | None) -> Sequence[float]:
    """The part of a usable xywh box in an image of this size (None: unknown); the box itself if it
    lies inside."""
    x, y, w, h = bbox
    if height is None or width is None:
        return bbox
    if x >= 0 and y >= 0 and x + w <= width and y + h <= height:
        return bbox
    left, top = max(x, 0), max(y, 0)
    return [left, top, min(x + w, width) - left, min(y + h, height) - top]


class Judged(NamedTuple):
    """What is to be said of boxes in their images."""

    corners: np.ndarray  # (B, 4) float32 xyxy, clipped to the image
    usable: np.ndarray  # (B,) bool: `box_problem` says nothing
    clipped: np.ndarray  # (B,) bool: usable, but more than rounding sticks out
    like_corners: np.ndarray  # (B,) bool: far outside as xywh, inside if they are two corners


def judge_boxes(xywh: np.ndarray, sizes: np.ndarray) -> Judged:
    """Judge boxes.

    Args:
        xywh: (B, 4) float64.
        sizes: (B, 2) int, the known (height, width) of the image of each.
    """
    x, y, w, h = xywh.T
    height, width = sizes.T
    right, bottom = x + w, y + h
    inner = (
        np.maximum(x, 0),
        np.maximum(y, 0),
        np.minimum(right, width),
        np.minimum(bottom, height),
    )
    apart = (x >= width) | (y >= height) | (right <= 0) | (bottom <= 0)
    thin = np.minimum(inner[2] - inner[0], inner[3] - inner[1]) < MIN_SIDE
    usable = ~((w <= 0) | (h <= 0) | apart | thin)
    out = np.maximum(np.maximum(-x, -y), np.maximum(right - width, bottom - height))
    # As two corners the third and the fourth number are right and bottom.
    as_corners = (x >= 0) & (x < w) & (w <= width) & (y >= 0) & (y < h) & (h <= height)
    far = (right > 1.1 * width) | (bottom > 1.1 * height)
    return Judged(
        np.stack(inner, axis=1, dtype=np.float32, casting="same_kind"),
        usable,
        usable & (out > ROUNDING),
        as_corners & far,
    )
