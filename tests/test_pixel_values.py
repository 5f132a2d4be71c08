"""Every kind of picture becomes 8-bit RGB by a fixed range of its kind, or by the range given."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from data.errors import DataError
from data.images import ImageReading, decode_image, read_image
from data.pixel_values import open_values, to_levels, value_kind
from tests.helpers.assertions import assert_clean
from tests.helpers.image_files import encoded, png16, tiff16

RAMP = np.tile(np.linspace(0, 65535, 256).round().astype(np.uint16), (4, 1))  # (4, 256)
STEPS = np.tile(np.arange(256), (4, 1))  # what it becomes


def levels(path, value_range=None):
    """(H, W, 3) as training sees an image."""
    image = read_image(path, ImageReading(value_range=value_range))
    assert image.mode == "RGB"
    return np.array(image)


def grey(folder, array, value_range=None, name="a.tif"):
    """The one channel of a grey picture that is saved and read."""
    Image.fromarray(array).save(folder / name)
    pixels = levels(folder / name, value_range)
    assert (pixels == pixels[..., :1]).all()
    return pixels[..., 0]


def slow_level(value, low, high):
    """The rule for one value."""
    if np.isnan(value) or value <= low:
        return 0
    return 255 if value >= high else round((float(value) - low) / (high - low) * 255)


def test_grey_and_two_level(tmp_path):
    pixels = np.arange(200, dtype=np.uint8).reshape(10, 20)
    assert np.array_equal(grey(tmp_path, pixels, name="grey.png"), pixels)
    two = np.where(pixels > 99, 255, 0)
    assert np.array_equal(grey(tmp_path, pixels > 99, name="levels.png"), two)


@pytest.mark.parametrize("transparency", [None, 1])
def test_palette(tmp_path, transparency):
    image = Image.new("P", (3, 1))
    image.putpalette([255, 0, 0, 0, 255, 0, 10, 20, 30])
    image.putdata([0, 1, 2])
    options = {} if transparency is None else {"transparency": transparency}
    image.save(tmp_path / "a.png", **options)
    assert levels(tmp_path / "a.png").tolist() == [[[255, 0, 0], [0, 255, 0], [10, 20, 30]]]


def test_alpha_is_dropped(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 6, 4)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "rgba.png")
    assert np.array_equal(levels(tmp_path / "rgba.png"), pixels[:, :, :3])
    Image.fromarray(pixels[:, :, :2]).save(tmp_path / "la.png")
    assert np.array_equal(levels(tmp_path / "la.png"), pixels[:, :, [0, 0, 0]])


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
    assert np.abs(levels(tmp_path / "ink.jpg").astype(int) - rgb).max() <= 3


@pytest.mark.parametrize("mode", ["LAB", "YCbCr", "RGBX", "CMYK"])
def test_other_colour_spaces(tmp_path, mode):
    Image.new("RGB", (8, 8), (200, 30, 30)).convert(mode).save(tmp_path / "a.tif")
    assert np.abs(levels(tmp_path / "a.tif")[0, 0].astype(int) - (200, 30, 30)).max() <= 3


@pytest.mark.parametrize("value_range", [None, (0, 4095)])
def test_eight_bits_are_as_they_are_with_any_range(tmp_path, value_range):
    pixels = np.arange(200, dtype=np.uint8).reshape(10, 20)
    assert np.array_equal(grey(tmp_path, pixels, value_range), pixels)


@pytest.mark.parametrize("kind", ["<u2", ">u2", np.int32])
def test_integers_span_sixteen_bits(tmp_path, kind):
    if kind == ">u2":
        Image.frombytes("I;16B", (256, 4), RAMP.astype(kind).tobytes()).save(tmp_path / "a.tif")
        assert np.array_equal(levels(tmp_path / "a.tif")[..., 0], STEPS)
    else:
        assert np.array_equal(grey(tmp_path, RAMP.astype(kind)), STEPS)


def test_sixteen_bit_png_and_colour(tmp_path):
    (tmp_path / "grey.png").write_bytes(png16(RAMP))
    assert np.array_equal(levels(tmp_path / "grey.png"), np.stack([STEPS] * 3, axis=2))
    (tmp_path / "rgb.png").write_bytes(png16(np.stack([RAMP, RAMP[:, ::-1], RAMP], axis=2)))
    expected = np.stack([STEPS, STEPS[:, ::-1], STEPS], axis=2)
    assert np.array_equal(levels(tmp_path / "rgb.png"), expected)


def test_floats_span_zero_to_one_whatever_their_own_largest_is(tmp_path):
    ramp = (RAMP / 65535).astype(np.float32)
    assert np.array_equal(grey(tmp_path, ramp), STEPS)
    assert np.array_equal(grey(tmp_path, np.where(ramp == 1, np.float32(1.02), ramp)), STEPS)
    assert np.array_equal(grey(tmp_path, ramp * 255), np.where(ramp * 255 >= 1, 255, 0))


@pytest.mark.parametrize(
    ("kind", "value_range"),
    [
        (np.uint16, (0, 4095)), (np.uint16, (7000, 9000)), (np.uint16, (-100.5, 300.25)),
        (np.int32, (0, 20)), (np.int32, (-1000, 400)), (np.float32, (-1, 1)),
        (np.float32, (0, 255)), (np.float32, (1e-6, 3e-6)), (np.uint16, None), (np.int32, None),
        (np.float32, None),
    ],
)  # fmt: skip
def test_against_a_loop(tmp_path, kind, value_range):
    low, high = value_range or ((0, 1) if kind == np.float32 else (0, 65535))
    values = np.random.default_rng(0).uniform(2 * low - high, 2 * high - low, (20, 30))
    values = np.clip(values, 0, 65535).astype(kind) if kind == np.uint16 else values.astype(kind)
    expected = [[slow_level(value, low, high) for value in row] for row in values]
    assert np.array_equal(grey(tmp_path, values, value_range), expected)
    assert np.unique(expected).size > 5


@pytest.mark.filterwarnings("error")
def test_undefined_and_infinite_values(tmp_path):
    values = np.array([[np.nan, np.inf, -np.inf, 0.5, -7, 1e38]], dtype=np.float32)
    assert grey(tmp_path, values).tolist() == [[0, 255, 0, 128, 0, 255]]
    assert grey(tmp_path, values, (-7.0, 8.0)).tolist() == [[0, 255, 0, 128, 0, 255]]


def test_signed_sixteen_bits_start_at_zero_too(tmp_path):
    """ImageJ's and CT's files; Pillow cannot write them, so the tag is set by hand."""
    values = np.array([[-32768, -1, 0, 257, 32767]], dtype="<i2")
    content = bytearray(encoded(Image.fromarray(values.astype("<u2")), format="TIFF"))
    entry = np.array([339, 3, 1, 0, 2, 0], dtype="<u2").tobytes()  # SampleFormat: signed
    where = content.index(np.array([284, 3], dtype="<u2").tobytes())  # of no use here
    content[where : where + 12] = entry
    image = decode_image(bytes(content), "ct.tif")
    assert np.array(image)[0, :, 0].tolist() == [0, 0, 0, 1, 127]
    image = decode_image(bytes(content), "ct.tif", ImageReading(value_range=(-32768, 32767)))
    assert np.array(image)[0, :, 0].tolist() == [0, 127, 128, 129, 255]


LAYOUTS = {
    "png": lambda values: png16(values),
    "little": lambda values: tiff16(values),
    "big": lambda values: tiff16(values, order=">"),
    "packed": lambda values: tiff16(values, packed=True),
    "packed, big": lambda values: tiff16(values, order=">", packed=True),
}


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_sixteen_bit_colour_has_both_bytes_for_a_range(layout, channels):
    """Pillow reads the high byte alone, which leaves 16 levels of 12 bits."""
    values = np.random.default_rng(0).integers(0, 4096, (8, 9, channels)).astype(np.uint16)
    content = LAYOUTS[layout](values)
    source = io.BytesIO(content)
    with Image.open(source) as image:
        assert value_kind(image) == "RGB"
        assert np.array_equal(open_values(source, image), values[..., :3])
    image = decode_image(content, "a", ImageReading(value_range=(0, 4095)))
    assert np.array_equal(np.array(image), to_levels(values[..., :3], (0, 4095)))
    assert np.array_equal(np.array(decode_image(content, "a")), values[..., :3] >> 8)


def test_of_other_sixteen_bit_pictures_the_high_byte_is_known():
    """Grey with alpha, premultiplied colour, colour in planes."""
    values = np.full((3, 4, 2), 0x0A0B, dtype=np.uint16)
    values[..., 1] = 65535
    for content in (
        png16(values),
        tiff16(values[..., [0, 0, 0, 1]], extra=1, packed=True),
        tiff16(values[..., [0, 0, 0]], planes=True, packed=True),
    ):
        image = decode_image(content, "a", ImageReading(value_range=(0, 0x0A0A)))
        assert (np.array(image) == 255).all()
        assert (np.array(decode_image(content, "a")) == 0x0A).all()


def test_planes_that_pillow_reads_as_noise_are_refused(tmp_path):
    values = np.random.default_rng(0).integers(0, 4096, (8, 9, 3)).astype(np.uint16)
    (tmp_path / "a.tif").write_bytes(tiff16(values, planes=True))
    with pytest.raises(DataError) as error:
        read_image(tmp_path / "a.tif")
    assert_clean(error, tmp_path / "a.tif", "16-bit colour", "interleaved channels")


def test_the_first_of_several_pages_is_read(tmp_path):
    pages = [Image.fromarray(np.full((4, 5), 40 * i, dtype=np.uint8)) for i in (1, 2, 3)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    assert (levels(tmp_path / "a.tif") == 40).all()
