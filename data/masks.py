"""Masks of COCO files: which pixels of an image belong to an object.

On disk and in memory a mask is COCO's compressed RLE, the `counts` of `pycocotools.mask`, at the
size of the original image; b"" is no mask. Where masks are used they are uint8, 0 or 1.

Legend: M masks of an image, H x W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask
from torch import Tensor, from_numpy, zeros
from torch import uint8 as torch_uint8

CORNERS = 3  # of a polygon; one with fewer encloses nothing
HALF = 128  # of 255: from there on a resized mask covers at least half of a pixel


def encode(segmentation: Any, height: int, width: int) -> bytes:
    """The `segmentation` of an annotation as RLE.

    Args:
        segmentation: polygons, each a list of coordinates x, y, x, y ... in pixels; RLE, compressed
            or not; or nothing: None or an empty list or text.
        height, width: of the image, in pixels.

    Returns:
        The counts; b"" if there is no mask, or no polygon encloses anything.

    Raises:
        ValueError: what is wrong with it, to follow "its segmentation".
    """
    if isinstance(segmentation, dict):
        return _encode_rle(segmentation, height, width)
    if segmentation is None or (isinstance(segmentation, list | str) and not segmentation):
        return b""
    if not isinstance(segmentation, list):
        raise ValueError(f"is {type(segmentation).__name__}, not polygons or RLE")
    if not isinstance(segmentation[0], list | dict):
        segmentation = [segmentation]  # one polygon that is not in a list of them
    polygons = [p for p in segmentation if len(_coordinates(p)) >= 2 * CORNERS]
    if not polygons:
        return b""
    return coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))["counts"]


def _coordinates(polygon: Any) -> list[float]:
    if not isinstance(polygon, list) or not all(
        isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in polygon
    ):
        raise ValueError("has a polygon that is not a list of finite numbers")
    if len(polygon) % 2:
        raise ValueError(f"has a polygon of {len(polygon)} numbers, which are not pairs of x and y")
    return polygon


def _encode_rle(rle: dict[str, Any], height: int, width: int) -> bytes:
    size, counts = rle.get("size"), rle.get("counts")
    if size is not None and size != [height, width]:
        raise ValueError(f"has the size {size}, but the image is {height} high and {width} wide")
    if isinstance(counts, str | bytes):
        return _checked(counts.encode("ascii", "replace") if isinstance(counts, str) else counts,
                        height, width)  # fmt: skip
    if not isinstance(counts, list) or not all(
        type(count) is int and count >= 0 for count in counts
    ):
        raise ValueError("has counts that are neither text nor a list of whole numbers from 0 on")
    if sum(counts) != height * width:
        raise ValueError(
            f"has counts for {sum(counts):,} pixels, but the image has {height * width:,}"
        )
    rle = {"size": [height, width], "counts": counts}
    return coco_mask.frPyObjects(rle, height, width)["counts"]


def _checked(counts: bytes, height: int, width: int) -> bytes:
    """Compressed counts, after a look at whether they can be decoded: pycocotools writes beyond its
    memory otherwise."""
    runs = run_lengths(counts)
    if runs is None:
        raise ValueError("has counts that are no compressed RLE")
    if runs.sum() != height * width or (runs < 0).any():
        raise ValueError(
            f"has counts for {runs.sum():,} pixels, but the image has {height * width:,}"
        )
    return counts


def run_lengths(counts: bytes) -> np.ndarray | None:
    """The runs of compressed RLE, zeros first, or None if it is none.

    Each letter holds five bits, the lowest first, and a sixth that says whether more follow; from
    the fourth on a number is the difference to the last but one.
    """
    bits = np.frombuffer(counts, np.uint8).astype(np.int64) - 48
    if not len(bits) or bits.min() < 0 or bits.max() > 63 or bits[-1] & 32:
        return None
    last = (bits & 32) == 0
    starts = np.concatenate([[0], last.nonzero()[0][:-1] + 1])
    place = np.arange(len(bits)) - np.repeat(starts, np.diff(np.append(starts, len(bits))))
    if place.max() > 6:  # more than 35 bits
        return None
    values = np.add.reduceat((bits & 31) << 5 * place, starts)
    negative = (bits[last] & 16) > 0
    values -= np.where(negative, 1 << 5 * (place[last] + 1), 0)
    values[1::2] = values[1::2].cumsum()
    values[2::2] = values[2::2].cumsum()
    return values


def decode(masks: Sequence[bytes], height: int, width: int) -> np.ndarray:
    """RLE of an image to (M, H, W) uint8; b"" to zeros."""
    result = np.zeros((len(masks), height, width), np.uint8)
    there = [place for place, counts in enumerate(masks) if counts]
    if there:
        rle = [{"size": [height, width], "counts": masks[place]} for place in there]
        result[there] = coco_mask.decode(rle).transpose(2, 0, 1)
    return result


def resized(masks: Sequence[bytes], size: tuple[int, int], width: int, height: int) -> Tensor:
    """Masks as an image is resized: what covers at least half of a pixel has it.

    Args:
        masks: RLE at the size of the original image.
        size: its (height, width).
        width, height: of the result.

    Returns:
        (M, height, width) uint8.
    """
    result = zeros((len(masks), height, width), dtype=torch_uint8)
    for place, mask in enumerate(decode(masks, *size)):
        if (height, width) != size:
            image = Image.fromarray(mask * 255).resize((width, height), Image.Resampling.BILINEAR)
            mask = (np.asarray(image) >= HALF).astype(np.uint8)
        result[place] = from_numpy(mask)
    return result
