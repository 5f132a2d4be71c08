"""What an image file says of itself before it is decoded, and whether it is whole."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import BinaryIO, NamedTuple

from PIL import Image

from data.images import (
    MAX_PIXELS,
    SIDEWAYS,
    UNREADABLE,
    BadImage,
    ImageReading,
    allow_pixels,
    check_size,
    orientation,
    too_large,
    unusable,
)
from data.pixel_values import check_layout, value_kind
from data.png_chunks import check_lengths
from data.regular_file import require_regular
from data.tiff_strips import check_strips

END_MARKERS = {"JPEG": b"\xff\xd9", "MPO": b"\xff\xd9", "PNG": b"IEND"}  # by Pillow's format
# Pixels that a byte can hold at most: a block of a JPEG takes a bit (with arithmetic coding less,
# hence the further 8), and a byte of Deflate makes at most 1032, of 8 pixels if they have 1 bit.
MOST_PIXELS = {"JPEG": 8 * 64 * 8, "MPO": 8 * 64 * 8, "PNG": 8 * 1032}
CHUNKS = 64  # of a PNG that are looked at; some writers make one of each 8 kB
TAIL = 64  # bytes at the end of a file in which its marker is looked for
ONE_PICTURE = frozenset({"MPO", "PSD"})  # formats whose further frames are not further pictures
LATE_TAIL = 1 << 16  # bytes at the end of a PNG in which chunks behind the pixels are looked for
LATE_EXIF = frozenset({b"eXIf", b"tEXt", b"zTXt", b"iTXt"})  # PNG chunks that can hold it


class Header(NamedTuple):
    """What is known of an image file without decoding it."""

    height: int  # of the stored picture, pixels
    width: int
    orientation: int  # EXIF, 1..8; 1 is upright
    deep: bool  # more than 8 bits per channel
    several: bool  # pages or frames, of which the first is read

    @property
    def changes_size(self) -> bool:
        """Whether turning the picture as its orientation says gives it another size."""
        return self.orientation >= SIDEWAYS and self.height != self.width

    def size(self, reading: ImageReading) -> tuple[int, int]:
        """(height, width) of the picture as it is read."""
        turned = reading.exif == "apply" and self.orientation >= SIDEWAYS
        return (self.width, self.height) if turned else (self.height, self.width)


def read_header(path: str | Path, whole: bool = False, max_pixels: int | None = None) -> Header:
    """What the header of an image file says.

    Args:
        path: the file.
        whole: also make sure, without decoding if that can be, that the file is not cut off. The
            rest shows when it is read.
        max_pixels: width x height that are too many; None: any will do.

    Raises:
        BadImage: the file is truncated, too large or not an image.
        DataError: the file is missing or cannot be read.
    """
    require_regular(path)
    try:
        if max_pixels is not None:
            allow_pixels(max_pixels)
        with open(path, "rb") as file, Image.open(file) as image:
            if max_pixels is not None:
                check_size(path, image, max_pixels)
            check_layout(image)
            deep = value_kind(image) is not None  # known only until the picture is decoded
            several = image.format not in ONE_PICTURE and getattr(image, "is_animated", False)
            if whole:
                _check_length(file, image)
            if _has_late_exif(file, image) or (whole and not _has_end(file, image)):
                image.load()
                if image.format == "TIFF":
                    check_strips(file, image)
            return Header(image.height, image.width, orientation(image), deep, several)
    except BadImage:
        raise
    except Image.DecompressionBombError:  # from twice Pillow's own limit on
        raise too_large(path, "", max_pixels or MAX_PIXELS) from None
    except UNREADABLE as error:
        raise unusable(path, error) from None


def _check_length(file: BinaryIO, image: Image.Image) -> None:
    """Refuse a JPEG, PNG or BMP that is too short for what it claims."""
    size = file.seek(0, os.SEEK_END)
    if size < image.width * image.height // MOST_PIXELS.get(image.format or "", sys.maxsize):
        raise ValueError(f"{size:,} bytes are too few for {image.width} x {image.height} pixels")
    if image.format == "PNG":
        check_lengths(file, size, CHUNKS)
    if image.format == "BMP" and image.tile[0][0] == "raw":
        file.seek(2)
        claimed = int.from_bytes(file.read(4), "little")
        start, (_, row, _) = image.tile[0][2:4]
        if size < min(claimed, start + row * image.height):  # some leave out the last padding
            raise ValueError(f"it has {size:,} bytes, not {claimed:,}")


def _has_end(file: BinaryIO, image: Image.Image) -> bool:
    """Whether the file ends as its format demands; False if the format has no end marker."""
    marker = END_MARKERS.get(image.format or "")
    if marker is None:
        return False
    file.seek(0, os.SEEK_END)
    file.seek(-min(TAIL, file.tell()), os.SEEK_CUR)
    return marker in file.read()


def _has_late_exif(file: BinaryIO, image: Image.Image) -> bool:
    """Whether a PNG may state its orientation behind its pixels, where its header ends for Pillow.

    Only the end of the file is read: the pixels may be in thousands of chunks. A name of a chunk
    that is among the pixels by chance costs one decoding.
    """
    if image.format != "PNG":
        return False
    file.seek(0, os.SEEK_END)
    file.seek(-min(LATE_TAIL, file.tell()), os.SEEK_CUR)
    behind = file.read().rpartition(b"IDAT")[2]
    return any(name in behind for name in LATE_EXIF)
