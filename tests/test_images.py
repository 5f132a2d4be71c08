"""Image files are read as 8-bit RGB, turned if that is wanted; errors name the file."""

from __future__ import annotations

import random

import numpy as np
import pytest
from PIL import Image, ImageOps

from data.errors import DataError
from data.images import ImageReading, decode_image, read_bytes, read_image
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
    ],
)
def test_impossible_readings(options, message):
    with pytest.raises(ValueError, match="it") as error:
        ImageReading(**options)
    assert message in str(error.value)


def test_readings_from_lists_and_tuples_are_equal():
    assert ImageReading(value_range=[0, 4095]) == ImageReading(value_range=(0.0, 4095.0))
    assert hash(ImageReading(value_range=[0, 4095])) == hash(ImageReading(value_range=(0, 4095)))


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
