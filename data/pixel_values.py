"""From whatever an image file holds to 8-bit RGB: the rule for each kind of picture.

    8 bits per channel or fewer   as they are: grey, palette, CMYK, YCbCr, LAB, HSV become RGB
    16-bit integers, grey         0..65535 becomes 0..255
    32-bit or signed integers     0..65535 becomes 0..255 (Pillow's mode I)
    floats                        0..1 becomes 0..255
    16-bit integers, colour       0..65535 becomes 0..255, by the high byte, as Pillow reads them

The range depends on the kind of file alone, never on an image's own values, so that the frames of a
series keep their brightness. A `value_range` (low, high) replaces it for every picture of more than
8 bits per channel: of a 12-bit camera's 16-bit PNGs (0, 4095), say. Pictures of 8 bits are as they
are with any range. Values outside the range become its ends; NaN becomes the low end, so does minus
infinity, and plus infinity the high end. Transparency is dropped: a pixel keeps the colour that is
stored below it. Of several pages or frames the first is read.

Legend: C channels, 3.
"""

from __future__ import annotations

from pathlib import Path
from sys import byteorder
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

RANGES = {"I": (0.0, 65535.0), "F": (0.0, 1.0), "RGB": (0.0, 65535.0)}  # by `value_kind`
# Names of byte orders in Pillow's layouts: big, little and that of this machine.
OTHER_ORDER = {";16B": ";16L", ";16L": ";16B", ";16N": {"little": ";16B", "big": ";16L"}[byteorder]}
BITS_PER_SAMPLE, PLANES, SEPARATE = 258, 284, 2  # TIFF tags, and a value of the second
PLAIN_COLOUR = ("RGB;", "RGBA;", "RGBX;")  # layouts whose bytes can be taken apart


def open_rgb(
    source: str | Path | BinaryIO, image: Image.Image, value_range: tuple[float, float] | None
) -> Image.Image:
    """Decode an image that Pillow has opened, but not loaded, as 8-bit RGB.

    Args:
        source: what it was opened from; 16-bit colour is read twice.
        image: the opened image; it is loaded.
        value_range: values that become 0 and 255; None: see the top of this file.

    Raises:
        OSError, SyntaxError, ValueError: as Pillow, if the file is unreadable.
    """
    check_layout(image)
    kind = value_kind(image)
    if kind is None or (kind == "RGB" and value_range is None):
        return to_rgb(image)
    values = open_values(source, image)
    return Image.fromarray(to_levels(values, value_range or RANGES[kind])).convert("RGB")


def to_rgb(image: Image.Image) -> Image.Image:
    """An image of at most 8 bits per channel, in whatever mode of Pillow, as RGB."""
    image.load()
    if image.mode == "RGB":
        return image  # to convert it would make a copy
    # Pillow converts premultiplied grey to its plain kind only.
    return (image.convert("LA") if image.mode == "La" else image).convert("RGB")


def value_kind(image: Image.Image) -> str | None:
    """What an opened image holds if it has more than 8 bits per channel, else None: `I`: grey
    integers, `F`: grey floats, `RGB`: 16-bit colour. To be asked before it is loaded."""
    if image.mode.startswith("I") or image.mode == "F":
        return image.mode[0]
    # Pillow has no mode for 16-bit colour; the name of the bytes' layout tells.
    return "RGB" if any(";16" in _layout(tile) for tile in getattr(image, "tile", ())) else None


def check_layout(image: Image.Image) -> None:
    """Refuse an opened image that Pillow would read as noise, by a ValueError: it takes deep planes
    to have 8 bits."""
    bits = image.tag_v2.get(BITS_PER_SAMPLE, ()) if image.format == "TIFF" else ()
    if len(image.tile) > 1 and max(bits, default=8) > 8 and value_kind(image) is None:
        raise ValueError(
            f"{max(bits)}-bit colour in uncompressed separate planes, which Pillow cannot read: "
            "save it with interleaved channels"
        )


def open_values(source: str | Path | BinaryIO, image: Image.Image) -> np.ndarray:
    """Values (H, W) or (H, W, C) of an opened image that has a `value_kind`, as they are stored.

    Of 16-bit grey with transparency, CMYK, premultiplied colour and colour in separate planes only
    the high byte is known, which is as far as Pillow reads them.
    """
    if value_kind(image) != "RGB":
        image.load()
        return np.asarray(image)
    plain = all(_layout(tile).startswith(PLAIN_COLOUR) for tile in image.tile)
    plain = plain and not (image.format == "TIFF" and image.tag_v2.get(PLANES) == SEPARATE)
    high = np.asarray(to_rgb(image)).astype(np.uint16)
    if not plain:
        return high * 257
    with Image.open(source) as again:
        # Read in the other byte order, the high byte of each value is the low one.
        again.tile = [_swap(tile) for tile in again.tile]
        return high * 256 + np.asarray(to_rgb(again))


def to_levels(values: np.ndarray, value_range: tuple[float, float]) -> np.ndarray:
    """Values of any shape as uint8 0..255: the range is stretched, what is outside becomes its
    ends, NaN the low end."""
    low, high = value_range
    if values.dtype.kind == "u" and values.itemsize == 2:  # a table gives the same, sooner
        table = to_levels(np.arange(65536, dtype=np.float64), value_range)
        return table[values]
    levels = (values.astype(np.float64) - low) / (high - low) * 255.0
    return np.nan_to_num(levels.round().clip(0, 255), nan=0.0).astype(np.uint8)


def _layout(tile: Any) -> str:
    """Pillow's name for the layout of a tile's bytes, such as `RGB;16B`; may be empty."""
    arguments = tile[3]
    first = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return first if isinstance(first, str) else ""


def _swap(tile: Any) -> Any:
    """The tile with its 16-bit values in the other byte order."""
    name, extents, offset, arguments = tile
    layout = _layout(tile)
    swapped = layout.replace(layout[-4:], OTHER_ORDER[layout[-4:]])
    arguments = (swapped, *arguments[1:]) if isinstance(arguments, tuple) else swapped
    if hasattr(tile, "_replace"):  # Pillow 11 and later
        return tile._replace(args=arguments)
    return name, extents, offset, arguments
