"""Image files for tests: encoded photographs, EXIF blocks, and kinds that Pillow cannot write."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image

ORIENTATION = 0x0112  # EXIF tag

CODINGS = {
    "plain.jpg": {"format": "JPEG"},
    "progressive.jpg": {"format": "JPEG", "progressive": True},
    "photo.jpeg": {"format": "JPEG", "quality": 30},
    "photo.png": {"format": "PNG"},
    "photo.webp": {"format": "WEBP", "lossless": True},
    "photo.bmp": {"format": "BMP"},
    "photo.tif": {"format": "TIFF"},
    "packed.tiff": {"format": "TIFF", "compression": "tiff_lzw"},
}


def photo(width=90, height=60, seed=0):
    """A picture of noise, in which no two ways to turn it look the same."""
    return Image.fromarray(
        np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)
    )


def encoded(image, **options):
    """The bytes of an image file."""
    stream = io.BytesIO()
    image.save(stream, **options)
    return stream.getvalue()


def oriented(value, **tags):
    """An EXIF block with an orientation, or without if it is None, and tags by number."""
    exif = Image.Exif()
    if value is not None:
        exif[ORIENTATION] = value
    for tag, content in tags.items():
        exif[int(tag)] = content
    return exif


def png_chunk(name, body):
    """One chunk of a PNG."""
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png16(pixels):
    """A PNG of 16 bits per channel from (H, W) or (H, W, C), written byte by byte."""
    height, width = pixels.shape[:2]
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[1 if pixels.ndim == 2 else pixels.shape[2]]
    rows = pixels.astype(">u2").reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    chunks = [(b"IHDR", header), (b"IDAT", data), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks)


def tiff16(pixels, order="<", planes=False, packed=False, extra=None):
    """A TIFF of 16 bits per channel from (H, W, C), written byte by byte.

    Args:
        pixels: uint16.
        order: `<` or `>`, of the bytes.
        planes: one channel after the other instead of interleaved.
        packed: with Deflate.
        extra: meaning of a fourth channel: 0 none, 1 premultiplied alpha, 2 alpha.
    """
    height, width, channels = pixels.shape
    values = pixels.astype(f"{order}u2")
    parts = [values[..., c].tobytes() for c in range(channels)] if planes else [values.tobytes()]
    parts = [zlib.compress(part) if packed else part for part in parts]
    starts = [8 + sum(map(len, parts[:i])) for i in range(len(parts) + 1)]
    tables = b""

    def placed(letter, entries):
        """A value of a tag, or where in the file its values are."""
        nonlocal tables
        if len(entries) == 1:
            return entries[0]
        tables += struct.pack(f"{order}{len(entries)}{letter}", *entries)
        return starts[-1] + len(tables) - len(entries) * struct.calcsize(letter)

    lengths = [len(part) for part in parts]
    tags = [
        (256, 4, 1, width), (257, 4, 1, height), (258, 3, channels, placed("H", [16] * channels)),
        (259, 3, 1, 8 if packed else 1), (262, 3, 1, 2),
        (273, 4, len(parts), placed("I", starts[:-1])), (277, 3, 1, channels), (278, 4, 1, height),
        (279, 4, len(parts), placed("I", lengths)), (284, 3, 1, 2 if planes else 1),
    ]  # fmt: skip
    tags += [] if extra is None else [(338, 3, 1, extra)]
    directory = struct.pack(f"{order}H", len(tags))
    for tag, kind, count, value in tags:
        short = kind == 3 and count == 1
        entry = struct.pack(f"{order}HH", value, 0) if short else struct.pack(f"{order}I", value)
        directory += struct.pack(f"{order}HHI", tag, kind, count) + entry
    magic = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(
        f"{order}I", starts[-1] + len(tables)
    )
    return magic + b"".join(parts) + tables + directory + bytes(4)
