"""Every kind of image file is read as 8-bit RGB; unusable ones are named before training starts."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from data.errors import DataError
from data.images import (
    check_images,
    decode_image,
    image_sizes,
    read_bytes,
    read_image,
)
from tests.helpers.assertions import assert_clean

RAMP = np.tile(np.linspace(0, 65535, 256).round().astype(np.uint16), (4, 1))  # (4, 256)


def photo(width=90, height=60, seed=0):
    return Image.fromarray(
        np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)
    )


def encoded(image, **options):
    stream = io.BytesIO()
    image.save(stream, **options)
    return stream.getvalue()


def png16(pixels):
    """A PNG of 16 bits per channel from (H, W) or (H, W, 3), written byte by byte."""
    height, width = pixels.shape[:2]
    kind = 2 if pixels.ndim == 3 else 0
    rows = pixels.astype(">u2").reshape(height, -1)
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks
    )


def read_array(path):
    image = read_image(path)
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


def test_grey_and_two_level(tmp_path):
    grey = np.arange(200, dtype=np.uint8).reshape(10, 20)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    assert np.array_equal(read_array(tmp_path / "grey.png"), np.stack([grey] * 3, axis=2))
    Image.fromarray(grey > 99).save(tmp_path / "levels.png")
    levels = np.where(grey > 99, 255, 0)
    assert np.array_equal(read_array(tmp_path / "levels.png"), np.stack([levels] * 3, axis=2))


@pytest.mark.parametrize("transparency", [None, 1])
def test_palette(tmp_path, transparency):
    image = Image.new("P", (3, 1))
    image.putpalette([255, 0, 0, 0, 255, 0, 10, 20, 30])
    image.putdata([0, 1, 2])
    options = {} if transparency is None else {"transparency": transparency}
    image.save(tmp_path / "palette.png", **options)
    assert read_array(tmp_path / "palette.png").tolist() == [
        [[255, 0, 0], [0, 255, 0], [10, 20, 30]]
    ]


def test_alpha_is_dropped(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 6, 4)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "rgba.png")
    assert np.array_equal(read_array(tmp_path / "rgba.png"), pixels[:, :, :3])
    Image.fromarray(pixels[:, :, :2]).save(tmp_path / "la.png")
    assert np.array_equal(read_array(tmp_path / "la.png"), pixels[:, :, [0, 0, 0]])


@pytest.mark.parametrize(
    ("cmyk", "rgb"),
    [
        ((0, 255, 255, 0), (255, 0, 0)),
        ((255, 0, 0, 0), (0, 255, 255)),
        ((0, 0, 0, 255), (0, 0, 0)),
        ((0, 0, 0, 0), (255, 255, 255)),
    ],
)
def test_cmyk_jpeg(tmp_path, cmyk, rgb):
    Image.new("CMYK", (16, 16), cmyk).save(tmp_path / "ink.jpg", quality=95)
    assert np.abs(read_array(tmp_path / "ink.jpg").astype(int) - rgb).max() <= 3


def test_sixteen_bits_span_the_whole_range(tmp_path):
    (tmp_path / "grey.png").write_bytes(png16(RAMP))
    (tmp_path / "rgb.png").write_bytes(png16(np.stack([RAMP, RAMP[:, ::-1], RAMP], axis=2)))
    Image.fromarray(RAMP).save(tmp_path / "grey.tif")
    Image.fromarray(RAMP.astype(np.int32)).save(tmp_path / "wide.tif")
    expected = np.tile(np.arange(256), (4, 1))
    for name in ("grey.png", "grey.tif", "wide.tif"):
        pixels = read_array(tmp_path / name)
        assert np.array_equal(pixels, np.stack([expected] * 3, axis=2)), name
    pixels = read_array(tmp_path / "rgb.png")
    assert np.array_equal(pixels, np.stack([expected, expected[:, ::-1], expected], axis=2))


@pytest.mark.parametrize("top", [1.0, 255.0])
def test_float_images(tmp_path, top):
    """0..1 and 0..255 are both in use."""
    Image.fromarray((RAMP / 65535 * top).astype(np.float32)).save(tmp_path / "float.tif")
    assert np.array_equal(read_array(tmp_path / "float.tif")[0, :, 0], np.arange(256))


def test_exif_orientation_is_not_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # viewers show it turned by 90 degrees
    photo(90, 60).save(tmp_path / "turned.jpg", exif=exif)
    assert Image.open(tmp_path / "turned.jpg").getexif()[0x0112] == 6
    assert read_image(tmp_path / "turned.jpg").size == (90, 60)


def test_missing_image(tmp_path):
    with pytest.raises(DataError) as error:
        read_image(tmp_path / "gone.jpg")
    assert_clean(error, tmp_path / "gone.jpg", "missing", "restore it or remove")


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


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("name", list(CODINGS))
def test_truncated_files_are_found(tmp_path, name):
    """Wherever a file is cut, the check before training and the reader agree: it is unusable."""
    path = tmp_path / name
    whole = encoded(photo(), **CODINGS[name])
    path.write_bytes(whole)
    check_images(tmp_path, [name])
    for part in (0.0, 0.01, 0.1, 0.5, 0.9):
        path.write_bytes(whole[: int(len(whole) * part)])
        with pytest.raises(DataError) as error:
            read_image(path)
        assert_clean(error, path, "truncated or unreadable", "replace it or remove")
        with pytest.raises(DataError) as error:
            check_images(tmp_path, [name])
        assert_clean(error, path, "truncated or unreadable", "replace it or remove")


@pytest.mark.parametrize("name", list(CODINGS))
def test_bytes_decode_as_their_file(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(encoded(photo(), **CODINGS[name]))
    content = read_bytes(path)
    assert content == path.read_bytes()
    decoded = decode_image(content, "named.so")
    assert decoded.mode == "RGB"
    assert np.array_equal(np.array(decoded), read_array(path))


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


def test_image_sizes_are_those_of_the_decoded_images(tmp_path):
    names = []
    for number, name in enumerate(CODINGS):
        photo(30 + number, 20).save(tmp_path / name)
        names.append(name)
    assert image_sizes(tmp_path, names) == [(20, 30 + number) for number in range(len(names))]
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    turned = ["turned.jpg", "turned.tif"]
    for name in turned:
        photo(90, 60).save(tmp_path / name, exif=exif)
    decoded = [read_image(tmp_path / name) for name in turned]
    assert image_sizes(tmp_path, turned) == [(image.height, image.width) for image in decoded]


def test_image_sizes_count_and_name_what_has_no_header(tmp_path):
    photo().save(tmp_path / "good.png")
    # The end marker of a JPEG, so that check_images takes it to be whole.
    (tmp_path / "bad.jpg").write_bytes(bytes(100) + b"\xff\xd9")
    check_images(tmp_path, ["bad.jpg"])
    with pytest.raises(DataError) as error:
        image_sizes(tmp_path, ["good.png", "bad.jpg", "gone.png"])
    assert_clean(error, tmp_path / "bad.jpg", "not an image", "and 1 more files")


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
    check_images(tmp_path, ["odd.jpg"])
    assert np.array_equal(read_array(tmp_path / "odd.jpg"), read_array(tmp_path / "plain.jpg"))


def test_the_content_decides_not_the_name(tmp_path):
    (tmp_path / "really_png.jpg").write_bytes(encoded(photo(), format="PNG"))
    check_images(tmp_path, ["really_png.jpg"])
    (tmp_path / "page.jpg").write_bytes(b"<html>404 not found</html>")
    with pytest.raises(DataError) as error:
        check_images(tmp_path, ["really_png.jpg", "page.jpg"])
    assert_clean(error, tmp_path / "page.jpg", "unreadable")


def test_check_images_counts_and_names_the_first(tmp_path):
    photo().save(tmp_path / "good.png")
    with pytest.raises(DataError) as error:
        check_images(tmp_path, ["good.png", "gone1.jpg", "good.png", "gone2.jpg", "gone3.jpg"])
    assert_clean(error, tmp_path / "gone1.jpg", "missing", "and 2 more files")
    with pytest.raises(DataError) as error:
        check_images(tmp_path, ["good.png", "gone.jpg"])
    assert "more files" not in str(error.value)
    with pytest.raises(DataError) as error:
        check_images(tmp_path / "nowhere", ["good.png"])
    assert_clean(error, tmp_path / "nowhere", "no such directory", "data.*.images")
