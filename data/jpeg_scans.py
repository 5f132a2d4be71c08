"""Does a JPEG hold the data of its whole picture?

libjpeg fills what is missing with grey and only warns, and Pillow does not pass the warning on: a
file that was cut and got an end marker, or lost a part in the middle, reads like a whole one. What
gives it away is the entropy-coded data of a scan, which ends too early:

    one scan       libjpeg decodes as the data come in. The file is decoded up to the end of the
                   scan, with a few bytes of padding in place of the end marker: if more would be
                   needed, Pillow says that the file is truncated.
    several parts  libjpeg reads progressive files to the end marker first, and goes on at the next
                   restart marker where there are some. Arbitrary bytes are put behind each part:
                   they change the picture only if it lacks data. That takes a second decoding, done
                   once for a file in each process.

What cannot be noticed, for JPEG has no checksum: changed bits that still decode to the right number
of blocks, and the loss of the last eight bytes of a scan or less.

Legend: a scan holds the coefficients of a band, from the `first` to the `last` of 0..63, but for
their `coarse` lowest bits, which later scans add.
"""

from __future__ import annotations

import io
import random
import zlib
from typing import NamedTuple

import numpy as np
from PIL import Image

START = b"\xff\xd8\xff"
END = 0xD9  # a second byte of a marker, like the following
END_MARKER = bytes([0xFF, END])
SCAN, INTERVAL = 0xDA, 0xDD
FRAMES = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})  # start of frame, all codings
PROGRESSIVE = 0xC2
HUFFMAN = frozenset({0xC0, 0xC1, PROGRESSIVE})
RESTARTS = (0xD0, 0xD7)  # from, to: markers within the data of a scan
# Ones pad the last byte of a scan, and are no code word. libjpeg looks 8 bytes ahead.
PADDING = b"\xff\x00" * 8
ARBITRARY = random.Random(0).randbytes(64).replace(b"\xff", b"\x01")

_whole: set[tuple[int, int]] = set()  # files of several parts that lack nothing: CRC, length


class Layout(NamedTuple):
    """Where the data of a JPEG are."""

    ends: tuple[
        int, ...
    ]  # of each part: of scans, and before restart markers; bytes from the start
    one_part: bool  # which holds all of the picture
    ended: bool  # there is a marker behind the last part
    complete: bool  # no restart marker is missing, nor a scan that would add lowest bits


def guard_scans(content: bytes) -> bytes:
    """Bytes that Pillow decodes to the same picture, or refuses if the data of a scan are short.

    Args:
        content: of a file; anything but a JPEG with Huffman coding is returned as it is.

    Raises:
        ValueError: one of several parts is short or missing.
        OSError, SyntaxError: as Pillow.
    """
    layout = read_layout(content)
    if layout is None or not layout.ended:  # Pillow finds out by itself
        return content
    if layout.one_part:
        end = layout.ends[0]
        if content[end : end + 2] != END_MARKER:
            _pixels(content)  # an odd marker: Pillow has to take the whole file as well
        return content[:end] + PADDING
    key = zlib.crc32(content), len(content)
    if key not in _whole:
        if not layout.complete or _pixels(content) != _pixels(_filled(content, layout.ends)):
            raise ValueError("a part of the picture is missing")
        _whole.add(key)
    return content


def read_layout(content: bytes) -> Layout | None:
    """Find the data of a JPEG; None if it is none, has another coding or breaks off before."""
    markers, restarts = _markers(content)
    ends: list[int] = []
    coarse: dict[tuple[int, int], int] = {}  # lowest bits to come, by channel and coefficient
    frame, interval, complete, place = b"", 0, True, len(START) - 1
    while True:
        place = _next_marker(content, place)
        if place is None or content[place] == END:
            complete = complete and not any(coarse.values())
            return Layout(tuple(ends), False, place is not None, complete) if ends else None
        kind, body = content[place], _segment(content, place)
        place += 3 + len(body)
        if kind in FRAMES:
            if kind not in HUFFMAN or len(body) < 6:
                return None
            frame, progressive = body, kind == PROGRESSIVE
        elif kind == INTERVAL:
            interval = int.from_bytes(
                body, "big"
            )  # MCUs between restart markers; 0: there are none
        elif kind == SCAN:
            if not frame or len(body) < 6:
                return None
            begin, place = place, int(markers[np.searchsorted(markers, place)])
            inside = restarts[(restarts >= begin) & (restarts < place)]
            if not interval and len(inside):  # libjpeg takes it for the end
                place = int(inside[0])
            elif interval:
                ends += inside.tolist()
                numbers = [content[mark + 1] & 7 for mark in inside]
                needed = -(-_count_mcus(frame, body) // interval) - 1
                complete = complete and numbers == [i % 8 for i in range(needed)]
            ends.append(place)
            if not progressive and len(ends) == 1 and body[0] == frame[5]:  # all channels
                return Layout(tuple(ends), True, place < len(content), True)
            first, last, bits = body[-3:]
            for channel in body[1:-3:2]:
                coarse |= {(channel, k): bits & 15 for k in range(first, min(last, 63) + 1)}


def _count_mcus(frame: bytes, scan: bytes) -> int:
    """How many units a scan has: blocks of one channel, or what belongs to a block of the one with
    the lowest resolution."""
    height, width = int.from_bytes(frame[1:3], "big"), int.from_bytes(frame[3:5], "big")
    factors = dict(zip(frame[6::3], frame[7::3], strict=False))  # by channel: across, down
    across = max(1, *(value >> 4 for value in factors.values()))
    down = max(1, *(value & 15 for value in factors.values()))
    if scan[0] == 1:
        own = factors.get(scan[1], 0x11)
        width, height = -(-width * (own >> 4) // across), -(-height * (own & 15) // down)
        across = down = 1
    return -(-width // (8 * across)) * -(-height // (8 * down))


def _next_marker(content: bytes, place: int) -> int | None:
    """Where the second byte of the next marker is, None if there is none."""
    place = content.find(b"\xff", place) + 1
    while place and content[place : place + 1] == b"\xff":  # any number may stand before it
        place += 1
    return place if 0 < place < len(content) else None


def _segment(content: bytes, marker: int) -> bytes:
    """What follows a marker and the length of it."""
    length = int.from_bytes(content[marker + 1 : marker + 3], "big")
    return content[marker + 3 : marker + 1 + length]


def _markers(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Where markers may start, the file's end last; and where restart markers may."""
    values = np.frombuffer(content, np.uint8)
    at = np.flatnonzero(values[:-1] == 0xFF)
    kind = values[at + 1]
    restart = (kind >= RESTARTS[0]) & (kind <= RESTARTS[1])
    other = (kind != 0) & (kind != 0xFF) & ~restart
    return np.append(at[other], len(content)), at[restart]


def _filled(content: bytes, ends: tuple[int, ...]) -> bytes:
    """The file with arbitrary bytes behind each part."""
    starts = (0, *ends)
    return ARBITRARY.join(content[a:b] for a, b in zip(starts, (*ends, len(content)), strict=True))


def _pixels(content: bytes) -> bytes:
    with Image.open(io.BytesIO(content), formats=("JPEG", "MPO")) as image:
        return image.tobytes()
