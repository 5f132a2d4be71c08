"""A JPEG that lacks data is refused, wherever it was cut and whatever follows; others are not."""

from __future__ import annotations

import contextlib
import io

import numpy as np
import pytest
from PIL import Image, ImageFilter

from data.jpeg_scans import PADDING, Layout, guard_scans, read_layout
from tests.helpers.image_files import encoded, photo

END = b"\xff\xd9"
KINDS = {
    "baseline": {},
    "full chroma": {"subsampling": 0},
    "coarse": {"quality": 20},
    "restarts": {"restart_marker_blocks": 3},
    "optimised": {"optimize": True},
    "progressive": {"progressive": True},
    "progressive, coarse": {"progressive": True, "quality": 20},
}


def picture(mode="RGB"):
    """Smooth, as photographs are, with detail at every place."""
    return photo(100, 75).filter(ImageFilter.GaussianBlur(1)).convert(mode)


def decode(content):
    with Image.open(io.BytesIO(content)) as image:
        return np.array(image)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("kind", list(KINDS))
def test_whole_files_decode_as_without(kind, mode):
    content = encoded(picture(mode), format="JPEG", **KINDS[kind])
    for file in (content, content + b"rubbish" * 50, content + content, content[:-2] + END * 3):
        assert np.array_equal(decode(guard_scans(file)), decode(content))


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("kind", list(KINDS))
def test_a_missing_part_is_an_error(kind, mode):
    content = encoded(picture(mode), format="JPEG", **KINDS[kind])
    data = content.index(b"\xff\xda") + 14
    alone = 0
    for share in np.linspace(0.1, 0.9, 13):
        place = data + int(share * (len(content) - data))
        cut = content[:place].rstrip(b"\xff")
        for tail in (END, content[-16:], END + b"rubbish" * 50):
            with pytest.raises((OSError, ValueError)):
                decode(guard_scans(cut + tail))
            with contextlib.suppress(OSError):
                alone += decode(cut + tail).shape[:2] == (75, 100)
    # Pillow alone takes them; tables between the scans of progressive files may be cut as well.
    assert alone == 39 or (alone and "progressive" in kind)


def test_a_part_lost_in_the_middle_is_an_error():
    content = encoded(picture(), format="JPEG")
    half = len(content) // 2
    with pytest.raises(OSError, match="truncated"):
        decode(guard_scans(content[:half].rstrip(b"\xff") + content[half + 600 :]))
    # What looks like a marker ends a scan, too.
    for marker in (b"\xff\xe5", b"\xff\x47"):
        with pytest.raises((OSError, ValueError)):
            decode(guard_scans(content[:half].rstrip(b"\xff") + marker + content[half:]))


def test_a_missing_scan_is_an_error():
    """Without the last scan, all coefficients are there, but their lowest bits are not."""
    content = encoded(picture(), format="JPEG", progressive=True)
    last = content.rindex(b"\xff\xda")
    tables = content.rindex(b"\xff\xc4", 0, last)
    for end in (tables, last):
        with pytest.raises(ValueError, match="missing"):
            guard_scans(content[:end] + END)


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("subsampling", [0, 2])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_part_between_restart_markers_is_missed(mode, subsampling, progressive):
    """libjpeg goes on with the next part, and leaves the rest of this one grey."""
    options = {"subsampling": subsampling, "progressive": progressive, "restart_marker_blocks": 4}
    content = encoded(picture(mode), format="JPEG", **options)
    assert np.array_equal(decode(guard_scans(content)), decode(content))
    layout = read_layout(content)
    assert layout.complete
    assert not layout.one_part
    marks = [end for end in layout.ends if content[end + 1] in range(0xD0, 0xD8)]
    mark = marks[len(marks) // 3]
    begin = max(end for end in layout.ends if end < mark) + 2
    lost = content[: begin + (mark - begin) // 3].rstrip(b"\xff") + content[mark:]
    without = content[:mark] + content[mark + 2 :]
    renamed = content[: mark + 1] + bytes([content[mark + 1] ^ 1]) + content[mark + 2 :]
    for damaged in (lost, without, renamed):
        with pytest.raises((OSError, ValueError)):
            decode(guard_scans(damaged))


def test_a_restart_marker_where_there_should_be_none():
    content = encoded(picture(), format="JPEG")
    half = len(content) // 2
    with pytest.raises(OSError, match="truncated"):
        decode(guard_scans(content[:half].rstrip(b"\xff") + b"\xff\xd3" + content[half:]))


def test_layouts():
    content = encoded(picture(), format="JPEG")
    assert read_layout(content) == Layout((len(content) - 2,), True, True, True)
    assert read_layout(content[:-2]) == Layout((len(content) - 2,), True, False, True)
    layout = read_layout(encoded(picture(), format="JPEG", progressive=True))
    # libjpeg's script: 10 scans for three channels.
    assert (len(layout.ends), layout.one_part, layout.complete) == (10, False, True)
    assert guard_scans(content) == content[:-2] + PADDING


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xd8\xff",
        b"\xff\xd8\xff\xff\xff",
        b"\xff\xd8\xff\xd9",
        b"\xff\xd8\xff\xe0\x00",
        b"\xff\xd8\xff\xe0\xff\xff",
        b"\xff\xd8\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00data\xff\xd9",  # no frame
        b"\xff\xd8\xff\xc0\x00\x03\x08\xff\xd9",  # a short frame
        b"\xff\xd8\xff\xc9\x00\x0b\x08\x00\x08\x00\x08\x01\x01\x11\x00\xff\xd9",  # arithmetic
        b"\x89PNG",
    ],
)
def test_what_it_does_not_know_is_left_to_pillow(content):
    assert read_layout(content) is None
    assert guard_scans(content) == content
