"""Are the strips or tiles of a Deflate TIFF as they were written? Each ends with a checksum, which
libtiff does not compare. The other ways in which TIFFs are packed have none."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any, BinaryIO

from PIL import Image

COMPRESSION, DEFLATE = 259, (8, 32946)  # tag, and its values
PLACES = {273: 279, 324: 325}  # tags: offsets of strips or tiles, and their lengths
BLOCK = 1 << 20  # bytes that are inflated at once


def check_strips(file: BinaryIO, image: Image.Image) -> None:
    """Compare the strips or tiles of an opened TIFF with their checksums.

    Raises:
        zlib.error: one is damaged.
    """
    tags = image.tag_v2
    if tags.get(COMPRESSION) not in DEFLATE:
        return
    for starts, lengths in PLACES.items():
        places = zip(_values(tags.get(starts)), _values(tags.get(lengths)), strict=False)
        for start, length in places:
            file.seek(start)
            stream, rest = zlib.decompressobj(), file.read(length)
            while rest and not stream.eof:
                stream.decompress(rest, BLOCK)
                rest = stream.unconsumed_tail


def _values(tag: Any) -> Sequence[int]:
    """The values of a tag that may have one, many or none."""
    return tag if isinstance(tag, tuple) else () if tag is None else (tag,)
