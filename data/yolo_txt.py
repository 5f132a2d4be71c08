"""One YOLO text file: a line per object.

A line is `class x y width height`, the box's centre and size as fractions of the image's width and
height; or a class and the corners of a polygon. Class numbers start at 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from data.errors import DataError
from data.label_files import read_lines
from data.labelled_images import Corners, Findings

ROUNDING = 0.01  # how far a fraction may be outside 0..1


@dataclass(frozen=True)
class YoloBox:
    """One line."""

    name: str  # of the class
    corners: Corners  # x1, y1, x2, y2 as fractions of the image
    where: str  # FILE:LINE
    polygon: tuple[float, ...] | None = None  # x, y, x, y ... as fractions, if there is one


def read_yolo_txt(
    path: Path, names: Mapping[int, str], keypoints: bool, findings: Findings
) -> list[YoloBox]:
    """Read the boxes of one image; a file without lines is an image without objects.

    Args:
        path: the text file.
        names: of the classes, by their numbers.
        keypoints: whether keypoints follow each box; they are not read.
        findings: gets repeated lines, polygons and confidences.

    Raises:
        DataError: a line cannot be read; FILE:LINE is named.
    """
    boxes: dict[tuple[float, ...], YoloBox] = {}
    for number, line in enumerate(read_lines(path), start=1):
        if not line:
            continue
        where = f"{path}:{number}"
        values = _numbers(line, where)
        if tuple(values) in boxes:
            findings.changed("lines that repeat another, taken once", where)
            continue
        name = _class_name(values[0], names, where)
        corners, polygon = _outline(values[1:], line, where, keypoints, findings)
        boxes[tuple(values)] = YoloBox(name, corners, where, polygon)
    return list(boxes.values())


def _numbers(line: str, where: str) -> list[float]:
    if "," in line or ";" in line:
        raise DataError(
            f"{where}: has commas or semicolons ({line[:60]!r}); write decimals with a point and "
            "blanks between the numbers"
        )
    try:
        values = [float(word) for word in line.split()]
    except ValueError:
        values = [math.nan]
    if not all(map(math.isfinite, values)):
        raise DataError(f"{where}: holds something else than numbers ({line[:60]!r}); correct it")
    return values


def _class_name(value: float, names: Mapping[int, str], where: str) -> str:
    if value not in names:  # an integer and the equal float are the same key
        known = f"{min(names)} to {max(names)}" if names else "none"
        raise DataError(
            f"{where}: is of class {value:g}, but there are names for {known} only; correct the "
            "number or complete the names"
        )
    return names[int(value)]


def _outline(
    values: Sequence[float], line: str, where: str, keypoints: bool, findings: Findings
) -> tuple[Corners, tuple[float, ...] | None]:
    """The box and None, or the box around the polygon and that, from the numbers after the
    class."""
    is_box = len(values) in (4, 5) or (keypoints and len(values) > 4)
    if not is_box and (len(values) < 6 or len(values) % 2):
        raise DataError(
            f"{where}: has {len(values) + 1} numbers ({line[:60]!r}); a box has 5 (class, x, y, "
            "width, height), a polygon a class and pairs of x and y"
        )
    if is_box and len(values) == 5 and not keypoints:
        findings.note("lines with a sixth number (a confidence?), not used", where)
    values = values[:4] if is_box else values
    worst = max(values, key=lambda value: abs(value - 0.5))
    if not -ROUNDING <= worst <= 1 + ROUNDING:
        raise DataError(
            f"{where}: has the number {worst:g}, but YOLO's are fractions of the image's width and "
            "height, from 0 to 1; divide pixels by them, or correct the line"
        )
    if is_box:
        x, y, w, h = values
        return (x - w / 2, y - h / 2, x + w / 2, y + h / 2), None
    findings.note("polygons, kept as masks, with the box around them", where)
    around = min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2])
    return around, tuple(values)
