"""Run lengths (COCO's compressed RLE) of a small mask that is enlarged to the size of its image.

The enlarged mask is never made: each run of a small column becomes a run of the columns that show
it. So the cost depends on the number of runs, hardly on the size of the image.

Legend: h, w height and width of the small mask, H, W of the image.
"""

from __future__ import annotations

import numpy as np
from pycocotools import mask as coco_mask


def encode_enlarged(mask: np.ndarray, size: tuple[int, int]) -> bytes:
    """Enlarge a mask by nearest neighbour and encode it.

    Pixel X of the image shows the small pixel floor((X + 1/2) w / W) that its centre lies in. So
    edges are where the same edges of a box are after multiplication with W / w and H / h, rounded
    to whole pixels (half-way down), and no part of the mask is lost.

    Args:
        mask: (h, w) bool.
        size: (H, W), not smaller than the mask.

    Returns:
        The `counts` of pycocotools.mask; its `size` is [H, W].
    """
    (small_height, small_width), (height, width) = mask.shape, size
    # COCO counts down the columns, from left to right. A gap below each keeps its runs apart.
    gap = small_height + 1
    columns = np.zeros(small_width * gap + 1, bool)
    columns[1:].reshape(small_width, gap)[:, :-1] = mask.T
    column, row = np.divmod(np.flatnonzero(columns[1:] != columns[:-1]), gap)
    column, top, bottom = column[::2], row[::2], row[1::2]  # of each run of a small column
    edge = edges(small_height, height)
    shown = ((2 * np.arange(width) + 1) * small_width) // (2 * width)  # (W,) small columns
    runs = np.bincount(column, minlength=small_width)
    number = runs[shown]  # (W,) of runs
    first = (runs.cumsum() - runs)[shown] - (number.cumsum() - number)
    run = np.repeat(first, number) + np.arange(number.sum())
    start = np.repeat(np.arange(width) * height, number)
    return _compress(start + edge[top][run], start + edge[bottom][run], size)


def edges(small: int, large: int) -> np.ndarray:
    """(small + 1,) int64 edges between enlarged pixels: the first pixel whose centre is beyond."""
    edge = np.arange(small + 1) * (2 * large)
    return -((small - edge) // (2 * small))


def _compress(start: np.ndarray, end: np.ndarray, size: tuple[int, int]) -> bytes:
    """From runs of pixels, in order, counted down the columns."""
    joined = start[1:] == end[:-1]  # from the bottom of a column to the top of the next
    keep = np.ones(len(start) + 1, bool)
    keep[1:-1] = ~joined
    ends = np.stack([start[keep[:-1]], end[keep[1:]]], axis=1).flatten()
    counts = np.diff(ends, prepend=0, append=size[0] * size[1])
    if len(ends) and not counts[-1]:
        counts = counts[:-1]  # the image ends with the last run
    run_lengths = {"size": list(size), "counts": counts}
    return coco_mask.frPyObjects([run_lengths], *size)[0]["counts"]
