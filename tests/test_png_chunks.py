"""Every damaged byte of a PNG's chunks is noticed, and a part that is missing without decoding."""

from __future__ import annotations

import io
import random
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from data.png_chunks import check_chunks, check_lengths, check_rows
from tests.helpers.image_files import encoded, photo, png16, png_chunk

WHOLE = encoded(photo(30, 20), format="PNG")
END = png_chunk(b"IEND", b"")


def lengths(content, most=64):
    check_lengths(io.BytesIO(content), len(content), most)


def test_whole_files():
    for content in (WHOLE, WHOLE + b"rubbish", WHOLE[:-12] + png_chunk(b"teXt", b"a") + END):
        check_chunks(content)
        lengths(content)


def test_every_bit_counts():
    rng = random.Random(0)
    for place in range(8, len(WHOLE), 7):
        damaged = bytearray(WHOLE)
        damaged[place] ^= 1 << rng.randrange(8)
        with pytest.raises(ValueError, match="chunk"):
            check_chunks(bytes(damaged))


@pytest.mark.parametrize("check", [check_chunks, lengths])
@pytest.mark.parametrize("tail", [b"", END, WHOLE[-16:], END + bytes(100)])
def test_cut_files(tail, check):
    for place in range(9, len(WHOLE) - len(END), 11):  # never between two chunks
        with pytest.raises(ValueError, match="chunk"):
            check(WHOLE[:place] + tail)


def test_many_chunks_are_not_all_looked_at():
    start = WHOLE[: len(WHOLE) - len(END)]
    lengths(start + png_chunk(b"teXt", b"a") * 9, most=5)
    with pytest.raises(ValueError, match="before its last chunk"):
        lengths(start + png_chunk(b"teXt", b"a") * 9, most=50)


def interlaced(pixels):
    """A PNG in Adam7 from (H, W, 3), which Pillow cannot write."""
    parts = [pixels[y::down, x::across] for x, y, across, down in (
        (0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2),
        (0, 1, 1, 2),
    )]  # fmt: skip
    rows = [b"\0" + row.tobytes() for part in parts if part.size for row in part]
    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 8, 2, 0, 0, 1)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"".join(rows))), (b"IEND", b"")]
    return WHOLE[:8] + b"".join(png_chunk(*chunk) for chunk in chunks)


def claiming(content, width, height):
    """The same data under a header that claims another size, with a right checksum."""
    header = struct.pack(">II", width, height) + content[24:29]
    return content[:8] + png_chunk(b"IHDR", header) + content[33:]


def load(content):
    image = Image.open(io.BytesIO(content))
    image.load()
    return image


KINDS = [encoded(photo(30, 20).convert(mode), format="PNG") for mode in ("1", "L", "P", "RGBA")]
KINDS += [WHOLE, png16(np.full((20, 30), 500, np.uint16)), interlaced(np.array(photo(30, 20)))]
KINDS += [encoded(Image.new(mode, (30, 20)), format="PNG") for mode in ("1", "L", "P", "RGB")]
KINDS += [interlaced(np.zeros((20, 30, 3), np.uint8)), interlaced(np.zeros((1, 3, 3), np.uint8))]


@pytest.mark.parametrize("content", KINDS)
def test_rows_that_are_missing(content):
    """Black rows are no fault, as long as there are data for them."""
    check_rows(load(content), content)
    width, height = load(content).size
    for claim in ((width, height + 1), (width, height + 9), (width, 4 * height)):
        wrong = claiming(content, *claim)
        check_chunks(wrong)
        try:
            image = load(wrong)
        except OSError:
            continue  # Pillow sees it if the data end within a part
        with pytest.raises(ValueError, match="last rows are missing"):
            check_rows(image, wrong)


def test_pillow_takes_pictures_without_their_last_rows():
    """Otherwise the test above could not fail."""
    assert load(claiming(KINDS[1], 30, 80)).size == (30, 80)
