"""Values of COCO files as tools write them: numbers as text, flags of any kind, polygons."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

LIMIT = 1e9  # of a coordinate, pixels
AREA_LIMIT = LIMIT**2


def read_number(value: Any, limit: float = LIMIT) -> float | int | None:
    """A number of at most `limit`, also one written as text; None if it is not one."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    # Refuses NaN too. It does not convert: an int may have too many digits for a float.
    return value if abs(value) <= limit else None


def read_size(value: Any) -> int | None:
    """A whole number of pixels above 0, or None."""
    number = read_number(value)
    return int(number) if number is not None and number >= 1 and number == int(number) else None


def read_text(value: Any) -> str | None:
    """Text that is not blank, or None."""
    return value if isinstance(value, str) and value.strip() else None


FLAGS = {"": 0, "0": 0, "0.0": 0, "false": 0, "no": 0, "1": 1, "1.0": 1, "true": 1, "yes": 1}


def read_flag(value: Any) -> int | None:
    """0 or 1, however it is written; nothing, and the NaN of tables, is 0. None: neither."""
    if value is None or value != value:
        return 0
    if not isinstance(value, (str, int, float)):
        return None
    return FLAGS.get(str(value).strip().lower())


def box_around(polygons: Any) -> list[float] | None:
    """The xywh box around polygons, which are lists of x and y in turn, or of points [x, y].

    None if that is not what they are, as with a mask (RLE).
    """
    numbers = [read_number(value) for value in _flat(polygons)]
    if len(numbers) < 4 or len(numbers) % 2 or None in numbers:
        return None
    x, y = min(numbers[::2]), min(numbers[1::2])
    return [x, y, max(numbers[::2]) - x, max(numbers[1::2]) - y]


def _flat(values: Any, depth: int = 3) -> Iterator[Any]:
    """The values in lists of up to `depth` levels."""
    if isinstance(values, list) and depth:
        for value in values:
            yield from _flat(value, depth - 1)
    else:
        yield values


def show(value: Any) -> str:
    """A value as it stands in the file, for messages."""
    return shorten(json.dumps(value, ensure_ascii=False))


def shorten(text: str) -> str:
    """At most 80 characters of a text."""
    return text if len(text) <= 80 else f"{text[:80]}..."
