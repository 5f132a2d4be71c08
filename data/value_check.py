"""Would pictures of more than 8 bits per channel come out black, white or pale?

A few are read before training, and where their values lie is compared with the range that becomes
black to white (`data.pixel_values`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from data.errors import DatasetError
from data.images import UNREADABLE, ImageReading
from data.pixel_values import RANGES, open_values, value_kind

SAMPLE = 16  # pictures, evenly spaced over the list
VALUES = 1_000_000  # of a picture are enough
TAILS = (0.1, 99.9)  # percentiles between which a picture's values lie: a hot pixel is no content
LOST = 1 / 8  # pictures that use less of the range are next to black, white or grey
FLAT = 1 / 64  # the same for a range that was given
PALE = 1 / 3  # pictures that use less of the range are worth a note
OUTSIDE = 1 / 3  # pictures of which more lies outside the range are cut off
# Tops of the ranges that cameras and programs use: 0/1, and 8, 10, 12, 14 and 16 bits.
TOPS = (1, 255, 1023, 4095, 16383, 65535)
OVERSHOOT = 1.05  # values may exceed a top by this factor, as resampled pictures do


@dataclass(frozen=True)
class _Values:
    """Where the values of one picture lie."""

    file: str
    low: float  # the percentiles TAILS, or the least and the largest if these are equal
    high: float
    black_to_white: tuple[float, float]  # the range
    used: float  # fraction of the range between the percentiles
    outside: float  # fraction of the values that lie outside the range


def check_values(root: Path, files: Sequence[str], reading: ImageReading) -> list[str]:
    """Look at a sample of pictures that have more than 8 bits per channel.

    Returns:
        Sentences to say at the start, if some have little contrast.

    Raises:
        DatasetError: at least half of them would lose most of their values; the message names the
            values found and the `data.value_range` to set. With a `value_range` that was given,
            only if next to nothing of them would be left.
    """
    steps = max(1, min(SAMPLE, len(files)) - 1)
    chosen = sorted({i * (len(files) - 1) // steps for i in range(min(SAMPLE, len(files)))})
    looked_at = [_look(root, files[i], reading) for i in chosen]
    readable = [values for values in looked_at if values is not None]
    sample = [values for values in readable if values.low < values.high]
    if not sample:  # no range would help
        nothing = f"all {len(readable)} images looked at hold a single value or none"
        return [f"{root / v.file}: this one first, {nothing}" for v in readable[:1]]
    # Who gives a range may cut off what is outside, and may have dark pictures.
    cut, lost = (1.0, FLAT) if reading.value_range else (OUTSIDE, LOST)
    ruined = [values for values in sample if values.used < lost or values.outside > cut]
    if 2 * len(ruined) >= len(sample):
        what = "would come out nearly black, white or cut off"
        raise DatasetError(_sentence(root, ruined, len(sample), what))
    pale = [values for values in sample if values.used < PALE or values.outside > cut]
    return [_sentence(root, pale, len(sample), "have little contrast")] if pale else []


def suggest_range(low: float, high: float) -> tuple[float, float]:
    """A range for values between `low` and `high` (larger): a usual one if they fill a good part of
    it, else their own, rounded outwards to three digits."""
    for top in TOPS:
        if low >= 0 and high <= top * OVERSHOOT and high - low >= top / 4:
            return 0.0, float(top)
    if -OVERSHOOT <= low < 0 and high <= OVERSHOOT and high - low >= 1 / 4:
        return -1.0, 1.0
    step = 10.0 ** (math.floor(math.log10(high - low)) - 2)
    digits = max(0, -math.floor(math.log10(step)))
    low, high = math.floor(low / step) * step, math.ceil(high / step) * step
    return round(low, digits), round(high, digits)


def _look(root: Path, file: str, reading: ImageReading) -> _Values | None:
    """The values of a picture; None if it cannot be read, which is not for this check to say."""
    path = root / file
    try:
        with Image.open(path) as image:
            bottom, top = ends = reading.value_range or RANGES[value_kind(image)]
            values = open_values(path, image)
    except UNREADABLE:
        return None
    finite = values[np.isfinite(values)].astype(np.float64)
    finite = finite[:: max(1, finite.size // VALUES)]
    if not finite.size:
        return _Values(file, 0.0, 0.0, ends, 0.0, 1.0)
    low, high = np.percentile(finite, TAILS).tolist()
    if low == high:  # small objects on an even ground
        low, high = finite.min().item(), finite.max().item()
    used = (min(max(high, bottom), top) - max(min(low, top), bottom)) / (top - bottom)
    outside = ((finite < bottom) | (finite > top)).mean().item()
    return _Values(file, low, high, ends, used, outside)


def _sentence(root: Path, some: Sequence[_Values], total: int, what: str) -> str:
    low, high = min(v.low for v in some), max(v.high for v in some)
    now, better = some[0].black_to_white, suggest_range(low, high)
    return (
        f"{root / some[0].file}: {len(some)} of {total} images looked at, this one first, {what}: "
        f"their values lie between {low:.6g} and {high:.6g}, and black to white is "
        f"[{now[0]:g}, {now[1]:g}]; set data.value_range=[{better[0]:g},{better[1]:g}] (for "
        f"data.proposals --value-range {better[0]:g} {better[1]:g})"
    )
