"""Headers tell the size of the decoded picture, turned or not, and whether a file is cut off."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from PIL import Image

from data.errors import DataError
from data.image_header import Header, read_header
from data.images import BadImage, ImageReading, read_image
from tests.helpers.assertions import assert_clean
from tests.helpers.image_files import CODINGS, encoded, oriented, photo, png16, png_chunk

READINGS = [ImageReading("stored"), ImageReading("apply")]


@pytest.mark.parametrize("reading", READINGS)
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.tif", "a.bmp", "a.gif"])
def test_sizes_are_those_of_the_decoded_pictures(tmp_path, name, orientation, reading):
    photo().save(tmp_path / name, exif=oriented(orientation))
    for whole in (False, True):
        size = read_header(tmp_path / name, whole).size(reading)
        decoded = read_image(tmp_path / name, reading)
        assert size == (decoded.height, decoded.width)


def test_a_png_may_state_its_orientation_behind_its_pixels(tmp_path):
    content = encoded(photo(), format="PNG")
    end = content.index(b"IEND") - 4
    assert read_exif(tmp_path, content) == 1
    block = oriented(6).tobytes()[len(b"Exif\0\0") :]
    assert read_exif(tmp_path, content[:end] + png_chunk(b"eXIf", block) + content[end:]) == 6
    text = png_chunk(b"tEXt", b"Comment\0none")
    assert read_exif(tmp_path, content[:end] + text + content[end:]) == 1
    assert read_image(tmp_path / "a.png", ImageReading("apply")).size == (90, 60)


def read_exif(folder, content):
    (folder / "a.png").write_bytes(content)
    return read_header(folder / "a.png").orientation


@pytest.mark.parametrize(
    ("header", "changes", "applied"),
    [
        (Header(60, 90, 1, False, False), False, (60, 90)),
        (Header(60, 90, 4, False, False), False, (60, 90)),
        (Header(60, 90, 5, False, False), True, (90, 60)),
        (Header(60, 60, 6, False, False), False, (60, 60)),
    ],
)
def test_orientations_from_5_on_exchange_the_sides(header, changes, applied):
    assert header.changes_size == changes
    assert header.size(ImageReading("stored")) == (60, header.width)
    assert header.size(ImageReading("apply")) == applied


def test_deep_and_several(tmp_path):
    deep = np.full((4, 5), 300, dtype=np.uint16)
    (tmp_path / "colour.png").write_bytes(png16(np.stack([deep] * 3, axis=2)))
    Image.fromarray(deep).save(tmp_path / "grey.png")
    Image.fromarray(deep.astype(np.float32)).save(tmp_path / "float.tif")
    photo().save(tmp_path / "plain.png")
    names = ("colour.png", "grey.png", "float.tif", "plain.png")
    assert [read_header(tmp_path / name).deep for name in names] == [True, True, True, False]
    for name in ("a.tif", "a.gif", "a.webp"):
        photo().save(tmp_path / name, save_all=True, append_images=[photo(seed=1)])
        assert read_header(tmp_path / name, whole=True).several
        photo().save(tmp_path / name)
        assert not read_header(tmp_path / name, whole=True).several
    # What phones add to a photograph is no further page of it.
    photo().save(tmp_path / "a.mpo", save_all=True, append_images=[photo(seed=1)])
    assert not read_header(tmp_path / "a.mpo", whole=True).several


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("name", list(CODINGS))
def test_truncated_files_are_found(tmp_path, name):
    """Wherever a file is cut, the check before training and the reader agree: it is unusable."""
    path = tmp_path / name
    whole = encoded(photo(), **CODINGS[name])
    path.write_bytes(whole)
    read_header(path, whole=True)
    for part in (0.0, 0.01, 0.1, 0.5, 0.9):
        path.write_bytes(whole[: int(len(whole) * part)])
        for read in (read_image, lambda path: read_header(path, whole=True)):
            with pytest.raises(DataError) as error:
                read(path)
            assert_clean(error, path, "truncated or unreadable", "replace it or remove")


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data + b"trailing garbage " * 50,
        lambda data: data + bytes(3000),
        lambda data: data[:-2] + bytes(3000),  # no end marker, but every pixel
    ],
)
def test_odd_but_decodable_jpegs_are_accepted(tmp_path, change):
    data = encoded(photo(), format="JPEG")
    (tmp_path / "odd.jpg").write_bytes(change(data))
    (tmp_path / "plain.jpg").write_bytes(data)
    read_header(tmp_path / "odd.jpg", whole=True)
    pictures = [np.array(read_image(tmp_path / name)) for name in ("odd.jpg", "plain.jpg")]
    assert np.array_equal(*pictures)


def test_the_content_decides_not_the_name(tmp_path):
    (tmp_path / "really_png.jpg").write_bytes(encoded(photo(), format="PNG"))
    read_header(tmp_path / "really_png.jpg", whole=True)
    (tmp_path / "page.jpg").write_bytes(b"<html>404 not found</html>")
    with pytest.raises(DataError) as error:
        read_header(tmp_path / "page.jpg")
    assert_clean(error, tmp_path / "page.jpg", "not an image")


def test_the_end_of_a_truncated_file_shows_only_if_asked(tmp_path):
    (tmp_path / "a.jpg").write_bytes(encoded(photo(), format="JPEG")[:-40])
    assert read_header(tmp_path / "a.jpg").size(READINGS[0]) == (60, 90)
    with pytest.raises(DataError, match="truncated"):
        read_header(tmp_path / "a.jpg", whole=True)


def test_files_too_short_for_what_they_claim_are_found(tmp_path):
    """Without decoding: three kinds of damage that leave the end marker."""
    jpeg, png, bmp = (encoded(photo(9, 6), format=kind) for kind in ("JPEG", "PNG", "BMP"))
    frame = jpeg.index(b"\xff\xc0")
    claim = struct.pack(">HH", 9000, 9000)
    header = struct.pack(">IIBBBBB", 9000, 9000, 8, 2, 0, 0, 0)
    files = {
        "claim.jpg": jpeg[: frame + 5] + claim + jpeg[frame + 9 :],
        "claim.png": png[:8] + png_chunk(b"IHDR", header) + png[33:],
        "half.png": png[: len(png) // 2] + png[-12:],
        "byte.bmp": bmp[:-1],  # of the padding: the pixels alone would do
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        read_header(tmp_path / name)
        with pytest.raises(BadImage) as error:
            read_header(tmp_path / name, whole=True)
        assert_clean(error, tmp_path / name, "truncated or unreadable")


def test_small_files_of_large_pictures_are_whole(tmp_path):
    """One colour, the smallest that these formats can make of it."""
    for name, options in (("a.jpg", {"optimize": True}), ("a.png", {"optimize": True})):
        Image.new("L", (2000, 2000)).save(tmp_path / name, **options)
        assert read_header(tmp_path / name, whole=True).width == 2000
    Image.new("1", (4000, 4000)).save(tmp_path / "a.png", optimize=True)
    assert read_header(tmp_path / "a.png", whole=True).width == 4000


def test_the_limit_of_pixels(tmp_path):
    photo(30, 20).save(tmp_path / "a.jpg")
    for limit in (None, 600):
        assert read_header(tmp_path / "a.jpg", max_pixels=limit).width == 30
    with pytest.raises(
        BadImage, match=r"a\.jpg: image claims 30 x 20 .* 599 pixels of data\.max_pixels"
    ):
        read_header(tmp_path / "a.jpg", max_pixels=599)
