"""Boxes and their captions on pictures of any size.

Lines and letters grow with the picture. The best boxes are on top, captions above all lines.

Legend: D boxes.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from data.atomic_files import open_atomic
from data.captions import letter, place
from data.errors import DataError
from data.fonts import CaptionFont

Colour = tuple[int, int, int]  # RGB, 0..255
Pixels = tuple[int, int, int, int]  # first and last column and row: left, top, right, bottom

LINE = 1 / 230  # width, as a share of the picture's side (the root of its area)
ROOM = 6  # lines that a box's side must have room for; those of smaller boxes are drawn around it

# Far apart as the eye sees it (CIELAB), the first ones most; bright enough for dark pictures.
PALETTE: tuple[Colour, ...] = tuple(
    (int(code[:2], 16), int(code[2:4], 16), int(code[4:], 16))
    for code in (
        *("ff4040", "00ff00", "0080ff", "00ffff", "ffa000", "ff00ff", "ffa0e0", "00c060"),
        *("808000", "ff00a0", "c0e000", "20c0ff", "ffe080", "c060e0", "e08060", "a0ffc0"),
        *("e06080", "40c000", "e0c000", "a0ff80", "e06000", "c0a0ff", "20c0a0", "a0c060"),
    )
)


def class_colour(label: int) -> Colour:
    """The colour of class 0, 1, ...; the first 24 are easy to tell apart."""
    if label < len(PALETTE):
        return PALETTE[label]
    red, green, blue = colorsys.hsv_to_rgb(label * 0.618034 % 1.0, 0.7, 0.9)
    return round(255 * red), round(255 * green), round(255 * blue)


def text_colour(background: Colour) -> str:
    """`black` or `white`, whichever has more contrast: (L + 0.05) / 0.05 or 1.05 / (L + 0.05).

    L is the relative luminance of the Web Content Accessibility Guidelines 2.1, in 0..1.
    """
    linear = [
        c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4
        for c in (value / 255 for value in background)
    ]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "black" if (luminance + 0.05) ** 2 > 1.05 * 0.05 else "white"


def line_width(size: tuple[int, int], weight: float = 1.0) -> int:
    """Width in pixels of the lines on a picture of (width, height)."""
    return max(1, round(weight * LINE * math.sqrt(size[0] * size[1])))


def draw_boxes(
    image: Image.Image,
    boxes: np.ndarray,
    captions: Sequence[str],
    colours: Sequence[Colour],
    weights: Sequence[float] | None = None,
    font: CaptionFont | None = None,
) -> Image.Image:
    """A copy of `image` with captioned boxes.

    Args:
        image: of any mode.
        boxes: (D, 4) xyxy in its pixels, the best first.
        captions: in characters of the font; an empty one is not drawn.
        colours: of the lines, and behind the captions.
        weights: of the lines; 1 without them.
        font: Pillow's own without one.
    """
    picture = image.convert("RGB")
    draw = ImageDraw.Draw(picture)
    corners = [_pixel_corners(box, picture.size) for box in np.asarray(boxes, float).tolist()]
    widths = [line_width(picture.size, weight) for weight in weights or [1.0] * len(corners)]
    frames = [_frame(*pair, picture.size) for pair in zip(corners, widths, strict=True)]
    for frame, colour, width in _last_first(frames, colours, widths):
        draw.rectangle(frame, outline=colour, width=width)
    lettering = letter(captions, picture.size, font or CaptionFont())
    patches = place(_edges(frames), _edges(corners), lettering.sizes, picture.size)
    for patch, text, colour in _last_first(patches, lettering.texts, colours):
        if patch is not None:
            left, top, right, bottom = patch
            draw.rectangle((left, top, right - 1, bottom - 1), fill=colour)
            start = (left + lettering.start[0], top + lettering.start[1])
            draw.text(start, text, fill=text_colour(colour), font=lettering.font, anchor="ls")
    return picture


def picture_path(directory: Path, file: str, suffix: str) -> Path:
    """`DIRECTORY/FILE.SUFFIX`: inside the folder even if the file is not, another for each file."""
    path = PurePosixPath(file)
    parts = [{path.anchor: "_", "..": "__"}.get(part, part) for part in path.parts]
    return directory.joinpath(*parts[:-1], f"{parts[-1]}.{suffix}")


def check_apart(images: Path, pictures: Iterable[Path]) -> None:
    """Find out before the work whether pictures would lie among the images; links are followed.

    Args:
        images: folder of the images.
        pictures: files to write.

    Raises:
        DataError: names the folder.
    """
    root = images.resolve()
    for folder in sorted({picture.parent for picture in pictures}):
        if folder.resolve().is_relative_to(root):
            raise DataError(
                f"{folder}: lies in the folder of the images, {images}, where pictures would be "
                "taken for images; choose a folder outside it"
            )


def save_picture(picture: Image.Image, path: Path) -> None:
    """Save in the format that the suffix names; the folder is made if it is missing.

    Raises:
        StorageError: the file cannot be written.
        DataError: the picture is too large for the format.
    """
    kind = Image.registered_extensions()[path.suffix.lower()]
    with open_atomic(path, binary=True, sync=False) as file:
        try:
            # Of JPEGs: else thin coloured lines are smeared.
            picture.save(file, kind, quality=92, subsampling=0)
        except OSError as error:
            if error.errno is not None:
                raise
            raise DataError(f"{path}: cannot be written ({error}); choose PNG") from None


def _last_first(*columns: Sequence[Any]) -> list[tuple[Any, ...]]:
    return list(zip(*columns, strict=True))[::-1]


def _pixel_corners(box: Sequence[float], size: tuple[int, int]) -> Pixels:
    """First and last pixels: a box's right and bottom edges are exclusive, Pillow's inclusive."""
    # Far outside, lines cannot be seen, and Pillow has limits.
    x1, y1, x2, y2 = (
        min(max(value, -side), 2 * side) for value, side in zip(box, size * 2, strict=True)
    )
    left, top = min(math.floor(x1), size[0] - 1), min(math.floor(y1), size[1] - 1)
    return left, top, max(left, round(x2) - 1), max(top, round(y2) - 1)


def _frame(corners: Pixels, width: int, size: tuple[int, int]) -> Pixels:
    """The outer pixels of a box's lines, which must not cover a small object."""
    left, top, right, bottom = corners
    if min(right - left, bottom - top) + 1 >= ROOM * width:
        return corners
    around = left - width, top - width, right + width, bottom + width
    last = size[0] - 1, size[1] - 1
    # A box at the edge of the picture has its line there, not beyond.
    left, top = (min(c, max(a, 0)) for c, a in zip(corners[:2], around[:2], strict=True))
    right, bottom = (
        max(c, min(a, e)) for c, a, e in zip(corners[2:], around[2:], last, strict=True)
    )
    return left, top, right, bottom


def _edges(pixels: Sequence[Pixels]) -> np.ndarray:
    """(D, 4) xyxy from first and last pixels."""
    return np.array(pixels, dtype=int).reshape(-1, 4) + [0, 0, 1, 1]
