"""Pictures of more than 8 bits that would come out black, white or pale are found before training.

Nobody's eyes are needed: what is named is compared with the 8-bit levels that the reader gives.
"""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

import data.value_check
from data.errors import DataError
from data.images import ImageReading, read_image
from data.value_check import check_values, suggest_range
from tests.helpers.assertions import assert_clean
from tests.helpers.image_files import png16

RAMP = np.tile(np.linspace(0, 1, 256), (64, 1))  # (64, 256)


def saved(folder, *arrays):
    names = [f"{number}.tif" for number in range(len(arrays))]
    for name, array in zip(names, arrays, strict=True):
        Image.fromarray(array).save(folder / name)
    return names


# A picture, and the range to name; None: it is fine.
KINDS = {
    "16 bits": (np.uint16, 65535 * RAMP, None),
    "12 bits": (np.uint16, 4095 * RAMP, (0, 4095)),
    "thermal": (np.uint16, 7000 + 2000 * RAMP, (7000, 9000)),
    "8 bits": (np.uint16, 255 * RAMP, (0, 255)),
    "integers of 8 bits": (np.int32, 255 * RAMP, (0, 255)),
    "labels": (np.int32, 20 * RAMP, (0, 20)),
    "two levels": (np.uint16, RAMP > 0.5, (0, 1)),
    "Hounsfield": (np.int32, 3000 * RAMP - 1024, (-1030, 1980)),
    "floats": (np.float32, RAMP, None),
    "resampled floats": (np.float32, np.where(RAMP == 1, 1.02, RAMP), None),
    "floats of 8 bits": (np.float32, 255 * RAMP, (0, 255)),
    "floats of 12 bits": (np.float32, 4095 * RAMP, (0, 4095)),
    "floats of 16 bits": (np.float32, 65535 * RAMP, (0, 65535)),
    "signed floats": (np.float32, 2 * RAMP - 1, (-1, 1)),
    "small floats": (np.float32, 0.02 * RAMP, (0, 0.02)),
    "some NaN": (np.float32, np.where(RAMP < 0.1, np.nan, RAMP), None),
    "one hot pixel": (np.uint16, np.where(np.arange(64 * 256).reshape(64, 256), 4095 * RAMP, 65535),
                      (0, 4095)),
}  # fmt: skip


@pytest.mark.parametrize("kind", list(KINDS))
def test_lost_pictures_are_an_error_with_the_range_to_set(tmp_path, kind):
    dtype, values, expected = KINDS[kind]
    files = saved(tmp_path, values.astype(dtype))
    if expected is None:
        assert check_values(tmp_path, files, ImageReading()) == []
        return
    with pytest.raises(DataError) as error:
        check_values(tmp_path, files, ImageReading())
    low, high = (f"{end:g}" for end in expected)
    assert_clean(
        error, tmp_path / files[0], f"set data.value_range=[{low},{high}]",
        f"--value-range {low} {high}", "nearly black, white or cut off",
    )  # fmt: skip
    reading = ImageReading(value_range=expected)
    assert check_values(tmp_path, files, reading) == []
    levels = np.array(read_image(tmp_path / files[0], reading))
    assert levels.min() <= 4
    assert levels.max() >= 250


def test_values_and_ends_are_named(tmp_path):
    files = saved(tmp_path, (np.round(7000 + 2000 * RAMP)).astype(np.uint16))
    with pytest.raises(DataError) as error:
        check_values(tmp_path, files, ImageReading())
    assert_clean(error, tmp_path, "lie between 7000 and 9000", "[0, 65535]", "1 of 1 images")


@pytest.mark.parametrize("value", [np.nan, 0.0, 70.0])
def test_pictures_of_a_single_value(tmp_path, value):
    blank = np.full((4, 5), value, dtype=np.float32)
    files = saved(tmp_path, blank, blank)
    (note,) = check_values(tmp_path, files, ImageReading())
    assert note.startswith(str(tmp_path / "0.tif"))
    assert "all 2 images looked at hold a single value or none" in note
    assert check_values(tmp_path, [], ImageReading()) == []


def test_what_cannot_be_read_is_passed_over(tmp_path):
    files = saved(tmp_path, (4095 * RAMP).astype(np.uint16))
    (tmp_path / "bad.tif").write_bytes((tmp_path / files[0]).read_bytes()[:-2000])
    assert check_values(tmp_path, ["bad.tif", "gone.tif"], ImageReading()) == []
    with pytest.raises(DataError, match="1 of 1 images"):
        check_values(tmp_path, ["bad.tif", *files, "gone.tif"], ImageReading())


def test_small_objects_on_an_even_ground(tmp_path):
    values = np.zeros((100, 100), dtype=np.uint16)
    values[50, 50:54] = 4000
    with pytest.raises(DataError, match=r"data\.value_range=\[0,4095\]"):
        check_values(tmp_path, saved(tmp_path, values), ImageReading())


def test_colour_of_twelve_bits(tmp_path):
    values = (4095 * np.stack([RAMP, RAMP[:, ::-1], RAMP], axis=2)).astype(np.uint16)
    (tmp_path / "a.png").write_bytes(png16(values))
    with pytest.raises(DataError, match=r"data\.value_range=\[0,4095\]"):
        check_values(tmp_path, ["a.png"], ImageReading())
    assert check_values(tmp_path, ["a.png"], ImageReading(value_range=(0, 4095))) == []


def test_low_contrast_is_a_note(tmp_path):
    files = saved(tmp_path, (16383 * RAMP).astype(np.uint16))
    (note,) = check_values(tmp_path, files, ImageReading())
    assert "have little contrast" in note
    assert "set data.value_range=[0,16383]" in note


def test_some_dark_pictures_among_others_are_a_note(tmp_path):
    full, dark = (65535 * RAMP).astype(np.uint16), (4095 * RAMP).astype(np.uint16)
    files = saved(tmp_path, full, dark, full)
    (note,) = check_values(tmp_path, files, ImageReading())
    assert str(tmp_path / "1.tif") in note
    assert "1 of 3 images" in note
    with pytest.raises(DataError, match="2 of 4 images"):
        check_values(tmp_path, saved(tmp_path, full, dark, dark, full), ImageReading())


def test_a_range_that_was_given_may_cut_off_and_be_dark(tmp_path):
    files = saved(tmp_path, (3000 * RAMP - 1024).astype(np.int32))
    assert check_values(tmp_path, files, ImageReading(value_range=(-160, 240))) == []
    files = saved(tmp_path, (4095 * RAMP).astype(np.uint16))
    (note,) = check_values(tmp_path, files, ImageReading(value_range=(0, 65535)))
    assert "have little contrast" in note
    for ends in ((0, 10**6), (5000, 6000)):  # nothing would be left
        with pytest.raises(DataError, match=r"set data\.value_range=\[0,4095\]"):
            check_values(tmp_path, files, ImageReading(value_range=ends))


def test_sixteen_of_many_are_looked_at(tmp_path, monkeypatch):
    looked = []
    original = data.value_check.open_values

    def counted(path, image):
        looked.append(path.name)
        return original(path, image)

    monkeypatch.setattr(data.value_check, "open_values", counted)
    files = saved(tmp_path, *[(65535 * RAMP[:2]).astype(np.uint16)] * 40)
    assert check_values(tmp_path, files, ImageReading()) == []
    assert len(set(looked)) == len(looked) == 16
    assert {looked[0], looked[-1]} == {"0.tif", "39.tif"}


@pytest.mark.parametrize(
    ("ends", "expected"),
    [
        ((0, 1), (0, 1)), ((0, 1.02), (0, 1)), ((3, 254), (0, 255)), ((0, 260), (0, 255)),
        ((200, 1020), (0, 1023)), ((0, 4095), (0, 4095)), ((0, 16000), (0, 16383)),
        ((0, 60000), (0, 65535)), ((-0.9, 0.8), (-1, 1)), ((7003, 8996), (7000, 9000)),
        ((0, 123456), (0, 124000)), ((-1.5e-6, 2.51e-6), (-1.5e-6, 2.51e-6)), 
        ((270.151, 310.888), (270.1, 310.9)),
    ],
)  # fmt: skip
def test_suggested_ranges(ends, expected):
    assert suggest_range(*ends) == pytest.approx(expected, rel=1e-12)
    low, high = suggest_range(*ends)
    assert low < high
