"""Read image files, with errors that name the file."""

from __future__ import annotations

import io
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from PIL import Image, UnidentifiedImageError

from data.errors import DataError
from data.pixel_values import open_rgb
from data.walk import list_images as list_images  # by this name for programs that are not ours

EXIF = ("stored", "apply")
# What Pillow raises for files that are missing, cut off or not images.
UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
# ... and for EXIF blocks that are broken, which says nothing about the picture.
BROKEN_EXIF = (*UNREADABLE, TypeError, LookupError, struct.error, OverflowError, EOFError)
ORIENTATION = 0x0112  # EXIF tag
UPRIGHT, SIDEWAYS = 1, 5  # orientations; from 5 on, width and height are exchanged
TURNS = {  # what makes a picture of each orientation upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class ImageReading:
    """How image files are read; boxes refer to pictures that are read in the same way."""

    # stored: pixels as they are in the file; apply: turned as the EXIF orientation says, which is
    # how viewers and many annotation tools show photographs. Pillow always turns TIFFs.
    exif: str = "stored"
    # Values that become black and white, in pictures of more than 8 bits per channel; null: a fixed
    # range for each kind of file, see data/pixel_values.py.
    value_range: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.exif not in EXIF:
            raise ValueError(f"exif is {self.exif!r}; set it to stored or apply")
        if self.value_range is not None:
            values = tuple(self.value_range)
            finite = len(values) == 2 and all(map(math.isfinite, values))
            if not finite or values[0] >= values[1]:
                raise ValueError(
                    f"value_range is {list(values)}; it must be two numbers, the lower one first"
                )
            object.__setattr__(self, "value_range", tuple(map(float, values)))


AS_STORED = ImageReading()


def read_image(path: str | Path, reading: ImageReading = AS_STORED) -> Image.Image:
    """Decode an image file as 8-bit RGB, whatever it was (grey, palette, RGBA, CMYK, 16 bits).

    `data.pixel_values` states the rule. By default the EXIF orientation is not applied: COCO's
    boxes refer to the stored pixels.

    Raises:
        DataError: the file is missing, truncated or not an image.
    """
    return _decode(path, path, reading)


def read_listed(
    path: str | Path,
    size: tuple[int | None, int | None],
    listed_in: str | Path,
    reading: ImageReading = AS_STORED,
) -> Image.Image:
    """`read_image` of a file whose (width, height) another file states, or None for unknown ones.

    Raises:
        DataError: the file is unreadable, or has another size.
    """
    image = read_image(path, reading)
    if None not in size and image.size != size:
        raise DataError(
            f"{path}: has {image.width} x {image.height} pixels, but {listed_in} says "
            f"{size[0]} x {size[1]}; correct its entry"
        )
    return image


def read_bytes(path: str | Path) -> bytes:
    """An image file as it is on disk, for `decode_image`.

    Raises:
        DataError: the file is missing or cannot be read.
    """
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise unusable(path, error) from None


def decode_image(
    content: bytes, path: str | Path, reading: ImageReading = AS_STORED
) -> Image.Image:
    """`read_image` of a file whose bytes have been read already; errors name `path`."""
    return _decode(io.BytesIO(content), path, reading)


def _decode(source: str | Path | BinaryIO, path: str | Path, reading: ImageReading) -> Image.Image:
    try:
        with Image.open(source) as image:
            rgb = open_rgb(source, image, reading.value_range)
            turn = TURNS.get(orientation(image)) if reading.exif == "apply" else None
            return rgb if turn is None else rgb.transpose(turn)
    except UNREADABLE as error:
        raise unusable(path, error) from None


def orientation(image: Image.Image) -> int:
    """EXIF orientation 1..8 of an opened image, 1 (upright) if it has none or the block is broken.

    A TIFF is upright: Pillow turns it when it decodes it, and exchanges its sides before that.
    """
    if image.format == "TIFF":
        return UPRIGHT
    try:
        # PNG's own method would decode the picture, to see if a block follows it.
        value = Image.Image.getexif(image).get(ORIENTATION, UPRIGHT)
    except BROKEN_EXIF:
        return UPRIGHT
    return value if isinstance(value, int) and value in TURNS else UPRIGHT


def unusable(path: str | Path, error: Exception) -> DataError:
    """The error to raise for a file that could not be read because of `error`."""
    if isinstance(error, FileNotFoundError):
        return DataError(f"{path}: image is missing; restore it or remove its entry")
    # Pillow's own message names the stream, not the file, when it was given bytes.
    reason = "not an image" if isinstance(error, UnidentifiedImageError) else error
    return DataError(
        f"{path}: image is truncated or unreadable ({reason}); replace it or remove its entry"
    )
