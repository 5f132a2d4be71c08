"""Is a PNG as it was written? Its chunks have checksums, of which Pillow leaves out those of the
pixels: changed bits give another picture. Rows for which there are no data stay black."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
from PIL import Image

SIGNATURE = b"\x89PNG\r\n\x1a\n"
FRAME = 12  # bytes of a chunk besides its body: length, name, checksum
LAST = b"IEND"
BLOCK = 1 << 20  # bytes that are inflated at once
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by the kind of colour
# First column and row, and steps between columns and rows, of the parts of an interlaced picture.
PARTS = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2),
         (0, 1, 1, 2)]  # fmt: skip


def check_chunks(content: bytes) -> None:
    """Compare the chunks of a PNG, up to the last one, with their checksums.

    Raises:
        ValueError: one is damaged, or the file ends before the last one.
    """
    for name, body, checksum in _chunks(content):
        if zlib.crc32(body, zlib.crc32(name)) != checksum:
            raise ValueError(f"wrong checksum of a chunk, {name!r}")


def check_rows(image: Image.Image, content: bytes) -> None:
    """Make sure that there are data for all rows of a decoded PNG.

    Only if one of the last two rows is black, which both kinds of PNG leave to the end, the data
    are inflated again to count them.

    Args:
        image: as Pillow decoded it, not converted.
        content: the file.

    Raises:
        ValueError: there are too few.
    """
    last = np.asarray(image.crop((0, max(0, image.height - 2), *image.size)))
    if last.reshape(len(last), -1).any(axis=1).all():
        return
    needed, stream = 0, zlib.decompressobj()
    for name, body, _ in _chunks(content):
        if name == b"IHDR":
            needed = _inflated_size(*struct.unpack(">IIBBBBB", body[:13]))
        while name == b"IDAT" and body and needed > 0:
            needed -= len(stream.decompress(body, BLOCK))
            body = stream.unconsumed_tail
    if needed > 0:
        raise ValueError("data of the last rows are missing")


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


def _chunks(content: bytes) -> Iterator[tuple[bytes, memoryview, int]]:
    """Name, body and checksum of each chunk up to the last one."""
    view, place, name = memoryview(content), len(SIGNATURE), b""
    while name != LAST:
        length, name = _head(content[place : place + 8])
        end = place + FRAME + length
        if end > len(content):
            raise ValueError("the file ends within a chunk")
        yield name, view[place + 8 : end - 4], int.from_bytes(view[end - 4 : end], "big")
        place = end


def _inflated_size(
    width: int, height: int, bits: int, colour: int, _packing: int, _filter: int, interlaced: int
) -> int:
    """Bytes of all rows, each with its filter."""
    total = 0
    for x, y, across, down in PARTS if interlaced else [(0, 0, 1, 1)]:
        columns, rows = -(-(width - x) // across), -(-(height - y) // down)
        if columns > 0 and rows > 0:
            total += rows * (1 + -(-columns * bits * CHANNELS[colour] // 8))
    return total


def _head(head: bytes) -> tuple[int, bytes]:
    """Length of a chunk's body and name of the chunk."""
    name = head[4:]
    if len(name) < 4 or not name.isalpha():
        raise ValueError("the file ends before its last chunk, or one is damaged")
    return int.from_bytes(head[:4], "big"), name
