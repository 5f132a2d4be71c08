"""Image files are read as 8-bit RGB, turned if that is wanted; errors name the file."""

from __future__ import annotations

import random
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image, ImageOps

from data.errors import DataError
from data.image_header import read_header
from data.images import (
    BadImage,
    ImageReading,
    decode_image,
    read_bytes,
    read_image,
    read_listed,
    reduced,
)
from tests.helpers.assertions import assert_clean
from tests.helpers.image_files import CODINGS, encoded, oriented, photo

APPLY = ImageReading(exif="apply")


def read_array(path, reading=ImageReading()):  # noqa: B008 (frozen)
    image = read_image(path, reading)
    assert image.mode == "RGB"
    return np.array(image)


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".tiff"])
def test_lossless_formats_read_exactly(tmp_path, suffix):
    path = tmp_path / f"photo{suffix}"
    photo().save(path)
    assert np.array_equal(read_array(path), np.array(photo()))


@pytest.mark.parametrize("suffix", [".jpg", ".webp"])
def test_lossy_formats_read_closely(tmp_path, suffix):
    smooth = Image.fromarray(np.tile(np.arange(90, dtype=np.uint8)[:, None] * 2, (60, 1, 3)))
    path = tmp_path / f"photo{suffix}"
    smooth.save(path, quality=95)
    difference = read_array(path).astype(int) - np.array(smooth)
    assert np.abs(difference).max() <= 6


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_if_told(tmp_path, suffix, orientation):
    path = tmp_path / f"a{suffix}"
    photo().save(path, exif=oriented(orientation))
    stored = read_array(path)
    assert stored.shape == (60, 90, 3)
    with Image.open(path) as image:
        assert image.size == (90, 60)
        upright = np.array(ImageOps.exif_transpose(image).convert("RGB"))
    assert np.array_equal(read_array(path, APPLY), upright)
    assert np.array_equal(upright, stored) == (orientation == 1)


@pytest.mark.parametrize("orientation", [3, 6])
def test_pillow_turns_every_tiff_itself(tmp_path, orientation):
    photo().save(tmp_path / "a.tif", exif=oriented(orientation))
    turned = np.rot90(np.array(photo()), {3: 2, 6: -1}[orientation])
    for reading in (ImageReading(), APPLY):
        assert np.array_equal(read_array(tmp_path / "a.tif", reading), turned)


@pytest.mark.parametrize("orientation", [None, 0, 1, 9, 65535])
def test_no_orientation_and_impossible_ones_are_upright(tmp_path, orientation):
    exif = oriented(orientation)
    exif.get_ifd(0x8825)[1] = "N"  # GPS
    photo().save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(read_array(tmp_path / "a.png", APPLY), np.array(photo()))


@pytest.mark.filterwarnings("ignore")  # Pillow's, of corrupt EXIF data
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
def test_broken_exif_blocks_do_no_harm(tmp_path, suffix):
    whole = oriented(6, **{"271": "Maker", "306": "2020:01:01 00:00:00"}).tobytes()
    rng = random.Random(0)
    blocks = [b"", b"Exif\0\0", b"Exif\0\0nonsense", whole[:20], whole[:-9]]
    for _ in range(60):
        block = bytearray(whole)
        for _ in range(rng.randint(1, 6)):
            block[rng.randrange(6, len(block))] = rng.choice((0, 255, rng.randrange(256)))
        blocks.append(bytes(block))
    for block in blocks:
        photo(9, 6).save(tmp_path / f"a{suffix}", exif=block)
        for reading in (ImageReading(), APPLY):
            assert read_image(tmp_path / f"a{suffix}", reading).size in ((9, 6), (6, 9))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"exif": "turn"}, "exif is 'turn'; set it to stored or apply"),
        ({"value_range": (1,)}, "value_range is [1]; it must be two numbers, the lower one first"),
        ({"value_range": (0, 1, 2)}, "value_range is [0, 1, 2]; it must be two"),
        ({"value_range": (5, 5)}, "value_range is [5, 5]; it must be two"),
        ({"value_range": (9, 1)}, "value_range is [9, 1]; it must be two"),
        ({"value_range": (0, float("inf"))}, "value_range is [0, inf]; it must be two"),
        ({"value_range": (float("nan"), 1)}, "value_range is [nan, 1]; it must be two"),
        ({"max_pixels": 0}, "max_pixels is 0; it must be at least 1"),
        ({"on_bad_image": "drop"}, "on_bad_image is 'drop'; set it to error or skip"),
    ],
)
def test_impossible_readings(options, message):
    with pytest.raises(ValueError, match="it") as error:
        ImageReading(**options)
    assert message in str(error.value)


def test_readings_from_lists_and_tuples_are_equal():
    assert ImageReading(value_range=[0, 4095]) == ImageReading(value_range=(0.0, 4095.0))
    assert hash(ImageReading(value_range=[0, 4095])) == hash(ImageReading(value_range=(0, 4095)))


def test_what_is_refused_is_no_part_of_how_pictures_look():
    """Boxes that were found stay valid when only the limit changes."""
    changed = ImageReading("apply", (0, 9), max_pixels=5, on_bad_image="skip")
    assert changed == ImageReading("apply", (0, 9))
    assert changed.look() == {"exif": "apply", "value_range": (0.0, 9.0)}


@pytest.mark.parametrize("name", list(CODINGS))
def test_too_many_pixels_are_refused_before_they_are_decoded(tmp_path, name):
    photo(30, 20).save(tmp_path / name)
    assert read_image(tmp_path / name, ImageReading(max_pixels=600)).size == (30, 20)
    with pytest.raises(BadImage) as error:
        read_image(tmp_path / name, ImageReading(max_pixels=599))
    assert_clean(
        error, tmp_path / name, "claims 30 x 20 pixels, more than the 599 pixels of data.max_pix",
        "--max-pixels", "remove its entry",
    )  # fmt: skip


def test_pillow_says_nothing_of_large_pictures_and_broken_exif(tmp_path):
    """In a process of its own: pytest has filters of its own for warnings."""
    Image.new("1", (10_000, 9_000)).save(tmp_path / "large.png")
    photo().save(tmp_path / "exif.jpg", exif=oriented(6).tobytes()[:-9])
    program = (
        "import sys\nfrom data.images import ImageReading, read_image\n"
        "for path in sys.argv[1:]:\n"
        "    print(read_image(path, ImageReading('apply', max_pixels=10**8)).size)"
    )
    command = [sys.executable, "-c", program, tmp_path / "large.png", tmp_path / "exif.jpg"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert done.stdout.splitlines()[0] == "(10000, 9000)"


def test_more_pixels_than_pillow_opens_by_itself(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # restored at the end
    photo(30, 20).save(tmp_path / "a.png")
    for read in (read_image, lambda path, reading: read_header(path, True, reading.max_pixels)):
        Image.MAX_IMAGE_PIXELS = 100
        with pytest.raises(BadImage) as error:
            read(tmp_path / "a.png", ImageReading(max_pixels=150))
        assert_clean(
            error, tmp_path / "a.png", "claims more than the 150 pixels of data.max_pixels"
        )
        assert Image.MAX_IMAGE_PIXELS == 100
        read(tmp_path / "a.png", ImageReading(max_pixels=600))


def test_damage_that_pillow_passes_over_is_an_error(tmp_path):
    jpeg, png = encoded(photo(), format="JPEG"), bytearray(encoded(photo(), format="PNG"))
    png[len(png) // 2] ^= 1
    files = {"half.jpg": jpeg[: len(jpeg) // 2] + b"\xff\xd9", "changed.png": bytes(png)}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(BadImage) as error:
            read_image(tmp_path / name)
        assert_clean(error, tmp_path / name, "truncated or unreadable", "replace it or remove")
        with pytest.raises(BadImage):
            decode_image(content, "named.so")


def test_only_bad_content_makes_a_bad_image(tmp_path):
    """A file that cannot be reached says nothing about its content: a disk may be gone."""
    (tmp_path / "text.jpg").write_text("no image")
    with pytest.raises(BadImage):
        read_image(tmp_path / "text.jpg")
    (tmp_path / "folder.jpg").mkdir()
    for name in ("gone.jpg", "folder.jpg", "text.jpg/a.jpg"):
        with pytest.raises(DataError) as error:
            read_image(tmp_path / name)
        assert not isinstance(error.value, BadImage)


def test_missing_image(tmp_path):
    with pytest.raises(DataError) as error:
        read_image(tmp_path / "gone.jpg")
    assert_clean(error, tmp_path / "gone.jpg", "missing", "restore it or remove")


@pytest.mark.parametrize("reading", [ImageReading(), APPLY])
@pytest.mark.parametrize("name", list(CODINGS))
def test_bytes_decode_as_their_file(tmp_path, name, reading):
    path = tmp_path / name
    path.write_bytes(encoded(photo(), **CODINGS[name], exif=oriented(6)))
    content = read_bytes(path)
    assert content == path.read_bytes()
    decoded = decode_image(content, "named.so", reading)
    assert decoded.mode == "RGB"
    assert np.array_equal(np.array(decoded), read_array(path, reading))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("name", list(CODINGS))
def test_truncated_bytes_are_named_after_their_file(tmp_path, name):
    whole = encoded(photo(), **CODINGS[name])
    for part in (0.0, 0.1, 0.9):
        with pytest.raises(DataError) as error:
            decode_image(whole[: int(len(whole) * part)], tmp_path / name)
        assert_clean(error, tmp_path / name, "truncated or unreadable", "replace it or remove")
        assert "BytesIO" not in str(error.value)


def test_reading_bytes_of_no_file(tmp_path):
    with pytest.raises(DataError) as error:
        read_bytes(tmp_path / "gone.jpg")
    assert_clean(error, tmp_path / "gone.jpg", "missing", "restore it or remove")
    with pytest.raises(DataError) as error:
        read_bytes(tmp_path)
    assert_clean(error, tmp_path, "unreadable", "directory")


def smooth(width=403, height=201):
    """A picture without high frequencies, so that decoding it smaller changes little."""
    coarse = np.random.default_rng(0).integers(0, 255, (4, 6, 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize(
    ("least", "scale"),
    [((403, 201), 1), ((202, 100), 1), ((201, 101), 1), ((201, 100), 2), ((101, 50), 2),
     ((100, 50), 4), ((50, 25), 8), ((1, 1), 8)],
)  # fmt: skip
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_large_jpegs_are_decoded_smaller_but_not_too_small(tmp_path, least, scale, mode):
    path = tmp_path / "a.jpg"
    smooth().convert(mode).save(path, quality=95)
    image, whole = read_image(path, least=least), read_image(path)
    assert reduced(image)[:2] == (scale, (403, 201))
    assert image.size == (-(-403 // scale), -(-201 // scale))
    assert image.mode == "RGB"
    part = reduced(image).part
    assert part == (0, 0, 403 / scale, 201 / scale)
    sizes = [(64, 32), Image.Resampling.BILINEAR]
    ours = np.array(image.resize(*sizes, part)).astype(int)
    assert np.abs(ours - np.array(whole.resize(*sizes))).mean() < 2


@pytest.mark.parametrize("value", range(1, 9))
def test_turned_jpegs_are_decoded_smaller(tmp_path, value):
    path = tmp_path / "a.jpg"
    smooth().save(path, quality=95, exif=oriented(value))
    whole = read_image(path, APPLY)
    sideways = whole.size == (201, 403)
    least = (100, 200) if sideways else (200, 100)
    image = read_image(path, APPLY, least)
    assert reduced(image)[:2] == (2, whole.size)
    assert image.size == ((101, 202) if sideways else (202, 101))
    assert reduced(read_image(path, APPLY, least[::-1])).scale == 1  # not wide or high enough
    small = [np.array(i.resize((32, 32))).astype(int) for i in (image, whole)]
    assert np.abs(small[0] - small[1]).mean() < 3


def test_other_files_are_decoded_whole(tmp_path):
    smooth().save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png", least=(10, 10))
    assert reduced(image) == (1, (403, 201), (0, 0, 403, 201))
    assert np.array_equal(np.array(image), np.array(smooth()))


@pytest.mark.parametrize("progressive", [False, True])
def test_damage_is_noticed_in_smaller_jpegs_too(tmp_path, progressive):
    path = tmp_path / "a.jpg"
    content = encoded(smooth(), format="JPEG", quality=95, progressive=progressive)
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(BadImage, match="truncated"):
        read_image(path, least=(10, 10))


def test_the_stated_size_is_that_of_the_whole(tmp_path):
    path = tmp_path / "a.jpg"
    smooth().save(path)
    assert read_listed(path, (403, 201), "x.json", least=(100, 50)).size == (101, 51)
    with pytest.raises(DataError, match=r"has 403 x 201 pixels, but x.json says 202 x 101"):
        read_listed(path, (202, 101), "x.json", least=(100, 50))
