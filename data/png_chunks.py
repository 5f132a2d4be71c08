"""Is a PNG as it was written? Its chunks have checksums, of which Pillow leaves out those of the
pixels: changed bits give another picture, and a part that is missing may stay black."""

from __future__ import annotations

import zlib
from typing import BinaryIO

SIGNATURE = b"\x89PNG\r\n\x1a\n"
FRAME = 12  # bytes of a chunk besides its body: length, name, checksum
LAST = b"IEND"


def check_chunks(content: bytes) -> None:
    """Compare the chunks of a PNG, up to the last one, with their checksums.

    Raises:
        ValueError: one is damaged, or the file ends before the last one.
    """
    view, place, name = memoryview(content), len(SIGNATURE), b""
    while name != LAST:
        length, name = _head(content[place : place + 8])
        body = view[place + 4 : place + 8 + length]
        place += FRAME + length
        if place > len(content):
            raise ValueError("the file ends within a chunk")
        if zlib.crc32(body) != int.from_bytes(view[place - 4 : place], "big"):
            raise ValueError(f"wrong checksum of a chunk, {name!r}")


def check_lengths(file: BinaryIO, size: int, most: int) -> None:
    """Go from chunk to chunk of a PNG by their lengths; their bodies are not read.

    Args:
        file: the PNG.
        size: of the file in bytes.
        most: chunks that are looked at.

    Raises:
        ValueError: a chunk does not follow where it should, or the file ends before the last one.
    """
    place, name = len(SIGNATURE), b""
    for _ in range(most):
        file.seek(place)
        length, name = _head(file.read(8))
        place += FRAME + length
        if place > size:
            raise ValueError("the file ends within a chunk")
        if name == LAST:
            return


def _head(head: bytes) -> tuple[int, bytes]:
    """Length of a chunk's body and name of the chunk."""
    name = head[4:]
    if len(name) < 4 or not name.isalpha():
        raise ValueError("the file ends before its last chunk, or one is damaged")
    return int.from_bytes(head[:4], "big"), name
