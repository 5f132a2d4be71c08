"""Before training: unusable files and wrong sizes are counted and explained in one sentence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.errors import DataError
from data.image_check import (
    StatedSizes,
    check_images,
    check_made_with,
    check_reading,
    reading_entry,
)
from data.images import AS_STORED, ImageReading, read_image
from tests.helpers.assertions import assert_clean
from tests.helpers.image_files import CODINGS, oriented, photo

APPLY = ImageReading(exif="apply")
SKIP = ImageReading(on_bad_image="skip")
CHECKS = [check_images, check_reading]


def photographs(folder, orientations, name="{}.jpg", width=8, height=6):
    """Small files, one for each orientation."""
    names = [name.format(number) for number in range(len(orientations))]
    for file, orientation in zip(names, orientations, strict=True):
        photo(width, height).save(folder / file, exif=oriented(orientation))
    return names


def stated(*sizes):
    """(width, height) of each, as people say it."""
    return StatedSizes("a.json", [(height, width) for width, height in sizes])


def test_unusable_files_are_counted_and_the_first_is_named(tmp_path):
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


def test_sizes_are_those_of_the_decoded_images(tmp_path):
    for number, name in enumerate(CODINGS):
        photo(30 + number, 20).save(tmp_path / name, exif=oriented((1, 6)[number % 2]))
    for reading in (AS_STORED, APPLY):
        decoded = [read_image(tmp_path / name, reading) for name in CODINGS]
        sizes = check_images(tmp_path, list(CODINGS), reading).sizes
        assert sizes == tuple((image.height, image.width) for image in decoded)


def test_a_file_with_an_end_and_no_header_is_unusable(tmp_path):
    photo().save(tmp_path / "good.png")
    (tmp_path / "bad.jpg").write_bytes(bytes(100) + b"\xff\xd9")
    with pytest.raises(DataError) as error:
        check_images(tmp_path, ["good.png", "bad.jpg", "gone.png"])
    assert_clean(error, tmp_path / "bad.jpg", "not an image", "and 1 more")


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
def test_a_rotation_is_named_with_its_remedy(tmp_path, suffix, check):
    names = photographs(tmp_path, [1, 6, 1, 8, 5], f"{{}}{suffix}")
    shown = stated((8, 6), (6, 8), (8, 6), (6, 8), (6, 8))
    with pytest.raises(DataError) as error:
        check(tmp_path, names, AS_STORED, shown)
    assert str(error.value) == (
        f"{tmp_path / names[1]}: has 8 x 6 pixels, but a.json says 6 x 8 (and 2 more files like "
        "it); the EXIF orientation explains all of them, the annotations are for the upright "
        "picture: set data.exif=apply (for data.proposals --exif apply)"
    )
    check(tmp_path, names, APPLY, shown)


@pytest.mark.parametrize("check", CHECKS)
def test_the_other_direction(tmp_path, check):
    names = photographs(tmp_path, [1, 7])
    with pytest.raises(DataError) as error:
        check(tmp_path, names, APPLY, stated((8, 6), (8, 6)))
    assert_clean(
        error, tmp_path / "1.jpg", "has 6 x 8 pixels, but a.json says 8 x 6; the EXIF orientation "
        "explains it, the annotations are for the stored picture: set data.exif=stored",
    )  # fmt: skip
    check(tmp_path, names, AS_STORED, stated((8, 6), (8, 6)))


def test_what_no_rotation_explains(tmp_path):
    names = photographs(tmp_path, [1, 1, 3, 6])
    with pytest.raises(DataError) as error:
        check_images(tmp_path, names, AS_STORED, stated((8, 6), (6, 8), (6, 8), (16, 12)))
    assert str(error.value) == (
        f"{tmp_path / '1.jpg'}: has 8 x 6 pixels, but a.json says 6 x 8 (and 2 more files like "
        "it); correct its entry"
    )


def test_neither_setting_fits_all(tmp_path):
    """Two are for the upright picture, one for the stored picture, one for another picture."""
    names = photographs(tmp_path, [6, 6, 6, 1])
    with pytest.raises(DataError) as error:
        check_images(tmp_path, names, AS_STORED, stated((6, 8), (6, 8), (8, 6), (9, 9)))
    assert_clean(
        error, tmp_path / "0.jpg", "and 2 more files", "explains 2 of these 3", "data.exif=apply",
        "correct the entries of what does not fit then: 2 files",
    )  # fmt: skip


def test_what_is_wrong_with_one_file_alone_is_passed_over(tmp_path):
    """`data.proposals` names such files itself, and goes on with the others."""
    names = photographs(tmp_path, [1, 1, 6])
    (tmp_path / "0.jpg").write_bytes(b"no image")
    sizes = stated((8, 6), (16, 12), (8, 6), (8, 6))
    assert check_reading(tmp_path, [*names, "gone.jpg"], AS_STORED, sizes) == []
    with pytest.raises(DataError, match=r"2\.jpg: .*set data\.exif=stored"):
        check_reading(tmp_path, [*names, "gone.jpg"], APPLY, sizes)
    assert check_reading(tmp_path, [], AS_STORED) == []


def test_orientations_that_sizes_cannot_show_are_noted(tmp_path):
    names = photographs(tmp_path, [1, 2, 3, 4, 6])
    sizes = stated(*[(8, 6)] * 5)
    (note,) = check_images(tmp_path, names, AS_STORED, sizes).notes
    assert note == (
        "images with an EXIF orientation that are read as stored: 3 (data.exif=apply turns them; "
        "their sizes do not show which picture their boxes are for)"
    )
    (note,) = check_images(tmp_path, names, AS_STORED).notes
    assert note.endswith("read as stored: 4 (data.exif=apply turns them)")
    assert check_images(tmp_path, names, APPLY).notes == ()
    square = photographs(tmp_path, [8], "square.jpg", 6, 6)
    (note,) = check_images(tmp_path, square, AS_STORED, stated((6, 6))).notes
    assert "read as stored: 1 (" in note


def test_pages_are_noted(tmp_path):
    photo().save(tmp_path / "a.tif", save_all=True, append_images=[photo(seed=1)])
    photo().save(tmp_path / "b.tif")
    (note,) = check_images(tmp_path, ["a.tif", "b.tif"]).notes
    assert note == "files with several pages or frames, the first of which is read: 1"


@pytest.mark.parametrize("check", CHECKS)
def test_lost_values_are_an_error(tmp_path, check):
    Image.fromarray(np.arange(4000, dtype=np.uint16).reshape(40, 100)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a\.png: .*data\.value_range=\[0,4095\]"):
        check(tmp_path, ["a.png"], AS_STORED)
    check(tmp_path, ["a.png"], ImageReading(value_range=(0, 4095)))


def test_a_broken_exif_block_stops_nothing(tmp_path):
    photo(8, 6).save(tmp_path / "a.jpg", exif=b"Exif\0\0broken")
    for reading in (AS_STORED, APPLY):
        assert check_images(tmp_path, ["a.jpg"], reading, stated((8, 6))).sizes == ((6, 8),)


def test_proposals_that_were_made_with_another_reading():
    wide = ImageReading(value_range=(0, 4095))
    for made, used in ((AS_STORED, APPLY), (APPLY, AS_STORED), (AS_STORED, wide), (wide, APPLY)):
        content = {"info": reading_entry(made)}
        check_made_with("p.json", content, made)
        with pytest.raises(DataError) as error:
            check_made_with("p.json", content, used)
        assert_clean(error, "p.json", "were found with exif", "find the boxes again")
    with pytest.raises(DataError) as error:
        check_made_with("p.json", {"info": reading_entry(wide)}, APPLY)
    assert_clean(
        error,
        "p.json",
        'exif "stored", value_range [0.0, 4095.0]',
        'exif "apply", value_range null',
    )


@pytest.mark.parametrize("info", [None, [], "text", {}, {"year": 2017}])
def test_other_files_go_with_any_reading(info):
    check_made_with("p.json", {"info": info}, APPLY)
    check_made_with("p.json", {}, APPLY)


def test_the_limit_of_pixels(tmp_path):
    names = photographs(tmp_path, [1, 1])
    small = ImageReading(max_pixels=47)
    message = r"0\.jpg: .* 47 pixels of data\.max_pixels .* \(and 1 more"
    with pytest.raises(DataError, match=message):
        check_images(tmp_path, names, small)
    assert check_reading(tmp_path, names, small) == []  # the file alone is at fault
    check_images(tmp_path, names, ImageReading(max_pixels=48))


def test_images_to_skip_keep_their_place(tmp_path):
    """So the order of training is the same as if they had been found later."""
    names = photographs(tmp_path, [1, 1, 1, 1])
    for name, end in (("1.jpg", -20), ("2.jpg", 5)):  # with a header and without
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:end])
    checked = check_images(tmp_path, names, SKIP, stated(*[(8, 6)] * 4))
    assert [Path(file.file).name for file in checked.bad] == ["1.jpg", "2.jpg"]
    assert all(file.reason.startswith(f"{file.file}: image is trunc") for file in checked.bad)
    assert checked.sizes == ((6, 8), (6, 8), (1, 1), (6, 8))
    assert checked.notes == (f"2 images to skip, the first: {checked.bad[0].reason}",)
    with pytest.raises(DataError, match=r"1\.jpg: .* \(and 1 more file like it\)"):
        check_images(tmp_path, names)


def test_what_is_not_skipped(tmp_path):
    names = photographs(tmp_path, [1, 1])
    (tmp_path / "0.jpg").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"gone\.jpg: image is missing; [^(]*$"):
        check_images(tmp_path, [*names, "gone.jpg"], SKIP)
    with pytest.raises(DataError, match=r"1\.jpg: has 8 x 6 pixels, but a.json says 6 x 8"):
        check_images(tmp_path, names, SKIP, stated((8, 6), (6, 8)))
    (tmp_path / "1.jpg").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"0\.jpg: .* \(and 1 more file like it\)"):
        check_images(tmp_path, names, SKIP)


def test_programs_that_are_not_ours_find_it_in_data_images():
    from data.images import check_images as by_its_old_name

    assert by_its_old_name is check_images
    with pytest.raises(ImportError):
        from data.images import no_such_thing  # noqa: F401
