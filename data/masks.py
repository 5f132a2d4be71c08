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
from torch import Tensor, zeros
from torch import uint8 as torch_uint8

from data.coco_values import show

CORNERS = 3  # of a polygon; one with fewer encloses nothing
FARTHEST = 10**6  # pixels; pycocotools takes memory for each pixel of an outline, and falls over it
HALF = 128  # of 255: from there on a resized mask covers at least half of a pixel


def encode(segmentation: Any, height: int, width: int) -> bytes:
    """The `segmentation` of an annotation as RLE.

    Args:
        segmentation: polygons, each a list of coordinates x, y, x, y ... in pixels; RLE, compressed
            or not; or nothing: None or an empty list or text.
        height, width: of the image, in pixels.

    Returns:
        The counts; b"" if there is no mask, or it covers no pixel. Polygons with fewer than three
        corners are left out.

    Raises:
        ValueError: what is wrong with it, to follow "its segmentation".
    """
    if isinstance(segmentation, dict):
        return _encode_rle(segmentation, height, width)
    if segmentation is None or (isinstance(segmentation, list | str) and not segmentation):
        return b""
    if not isinstance(segmentation, list):
        raise ValueError(f"is {type(segmentation).__name__}, not polygons or RLE")
    polygons = list(map(_coordinates, _polygons(segmentation)))
    polygons = [polygon for polygon in polygons if len(polygon) >= 2 * CORNERS]
    if not polygons:
        return b""
    parts = coco_mask.frPyObjects(polygons, height, width)
    return _unless_empty(parts[0] if len(parts) == 1 else coco_mask.merge(parts))


def flat_polygons(segmentation: Any) -> int:
    """How many polygons of a segmentation that `encode` takes have fewer than three corners."""
    if not isinstance(segmentation, list) or not segmentation:
        return 0
    return sum(len(polygon) < 2 * CORNERS for polygon in _polygons(segmentation))


def _polygons(segmentation: list[Any]) -> list[Any]:
    one = not isinstance(segmentation[0], list | dict)  # a polygon that is not in a list of them
    return [segmentation] if one else segmentation


def _coordinates(polygon: Any) -> list[float]:
    if not isinstance(polygon, list) or not set(map(type, polygon)) <= {int, float}:
        raise ValueError("has a polygon that is not a list of finite numbers")
    if len(polygon) % 2:
        raise ValueError(f"has a polygon of {len(polygon)} numbers, which are not pairs of x and y")
    try:
        finite = math.isfinite(sum(polygon))
        reach = max(map(abs, polygon), default=0)
    except OverflowError:  # an int that no float holds
        finite, reach = True, math.inf
    if not finite:
        raise ValueError("has a polygon that is not a list of finite numbers")
    longest = 2 * reach * len(polygon)  # that the outline can be
    if reach > FARTHEST or (longest > FARTHEST and _length(polygon) > FARTHEST):
        raise ValueError(
            f"has a polygon that reaches further, or is longer, than {FARTHEST:,} pixels"
        )
    return polygon


def _length(polygon: list[float]) -> float:
    points = np.array(polygon, np.float64).reshape(-1, 2)
    return float(np.abs(np.diff(points, axis=0)).sum())


def _unless_empty(rle: dict[str, Any]) -> bytes:
    return rle["counts"] if coco_mask.area(rle) else b""


def _encode_rle(rle: dict[str, Any], height: int, width: int) -> bytes:
    size, counts = rle.get("size"), rle.get("counts")
    if size is not None and size != [height, width]:
        raise ValueError(
            f"has the size {show(size)}, but the image is {height} high and {width} wide"
        )
    if isinstance(counts, str | bytes):
        letters = counts.encode("ascii", "replace") if isinstance(counts, str) else counts
        return _checked(letters, height, width)
    if not isinstance(counts, list) or not all(
        type(count) is int and count >= 0 for count in counts
    ):
        raise ValueError("has counts that are neither text nor a list of whole numbers from 0 on")
    _require_all(sum(counts), height, width)
    rle = {"size": [height, width], "counts": counts}
    return _unless_empty(coco_mask.frPyObjects(rle, height, width))


def _require_all(pixels: int, height: int, width: int) -> None:
    if pixels != height * width:
        number = f"{pixels:,}" if pixels < 10**15 else "too many"
        raise ValueError(f"has counts for {number} pixels, but the image has {height * width:,}")


def _checked(counts: bytes, height: int, width: int) -> bytes:
    """Compressed counts, after a look at whether they can be decoded: pycocotools writes beyond its
    memory otherwise."""
    runs = run_lengths(counts)
    if runs is None:
        raise ValueError("has counts that are no compressed RLE")
    if (runs < 0).any():
        raise ValueError("has counts below 0")
    _require_all(int(runs.sum()), height, width)
    return counts if runs[1::2].any() else b""


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


def resized(
    masks: Sequence[bytes], size: tuple[int, int], width: int, height: int, flip: bool = False
) -> Tensor:
    """Masks as an image is resized: what covers at least half of a pixel has it.

    Args:
        masks: RLE at the size of the original image.
        size: its (height, width).
        width, height: of the result.
        flip: whether it is mirrored left-right.

    Returns:
        (M, height, width) uint8.
    """
    result = zeros((len(masks), height, width), dtype=torch_uint8)
    for of_result, counts in zip(result.numpy(), masks, strict=True):
        if counts:
            rle = {"size": list(size), "counts": counts}
            _resize_into(of_result[:, ::-1] if flip else of_result, coco_mask.decode(rle))
    return result


def _resize_into(result: np.ndarray, mask: np.ndarray) -> None:
    """Resize a mask into zeros. Pillow resizes rows, then columns: both only where the mask is give
    the same bits as all of it."""
    height, width = result.shape
    rows = _extent(mask.any(axis=1))
    if rows.stop == 0:
        return
    band = Image.fromarray(mask[rows] * 255)
    band = np.asarray(band.resize((width, band.height), Image.Resampling.BILINEAR))
    columns = _extent(band.any(axis=0))
    strip = np.zeros((len(mask), columns.stop - columns.start), np.uint8)
    strip[rows] = band[:, columns]
    if strip.size:  # else it is so much smaller that nothing is left
        strip = Image.fromarray(strip)
        strip = np.asarray(strip.resize((strip.width, height), Image.Resampling.BILINEAR))
        result[:, columns] = strip >= HALF


def _extent(there: np.ndarray) -> slice:
    """From the first to the last that is true."""
    places = there.nonzero()[0]
    return slice(places[0], places[-1] + 1) if len(places) else slice(0, 0)
