"""Every damaged byte of a PNG's chunks is noticed, and a part that is missing without decoding."""

from __future__ import annotations

import io
import random

import pytest

from data.png_chunks import check_chunks, check_lengths
from tests.helpers.image_files import encoded, photo, png_chunk

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
