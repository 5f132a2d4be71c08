"""Masks on pictures of any size: translucent, with a line along the edge.

Legend: D masks, H x W the picture, h x w the part of it around a mask.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from data.drawing import ROOM, Colour, line_width

OPACITY = 0.4  # of the colour on a mask


def draw_masks(
    image: Image.Image, masks: Sequence[Mapping[str, Any]], colours: Sequence[Colour]
) -> Image.Image:
    """A copy of `image` with masks; one at a time is in memory.

    Args:
        image: of any mode.
        masks: D of COCO's compressed run lengths (RLE) of its pixels, the best first, which is on
            top.
        colours: of the masks.
    """
    pixels = np.array(image.convert("RGB"))  # (H, W, 3)
    for mask, colour in list(zip(masks, colours, strict=True))[::-1]:
        rows, columns = _part_around(mask)
        inside = coco_mask.decode(mask)[rows, columns].astype(bool)  # (h, w)
        line = inside & ~_eroded(inside, _line(inside, image.size))
        part = pixels[rows, columns]
        part[inside] = ((1 - OPACITY) * part[inside] + OPACITY * np.array(colour)).round()
        part[line] = colour
    return Image.fromarray(pixels)


def _part_around(mask: Mapping[str, Any]) -> tuple[slice, slice]:
    """Rows and columns of a mask and, where the picture goes on, of one pixel around it."""
    left, top, width, height = (int(side) for side in coco_mask.toBbox(mask))
    rows = slice(max(top - 1, 0), top + height + 1)
    return rows, slice(max(left - 1, 0), left + width + 1)


def _line(inside: np.ndarray, size: tuple[int, int]) -> int:
    """Width in pixels of the line; it must not cover a small object."""
    return min(line_width(size), min(inside.shape) // ROOM)


def _eroded(mask: np.ndarray, steps: int) -> np.ndarray:
    """A mask (h, w) without its pixels at the edge, as many times; the end of the array is none."""
    for _ in range(steps):
        padded = np.pad(mask, 1, mode="edge")
        across = padded[1:-1, :-2] & padded[1:-1, 2:]
        mask = mask & across & padded[:-2, 1:-1] & padded[2:, 1:-1]
    return mask
