"""Image files that were found whole are not read again until they change."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image

from data import checked_files, image_check
from data.errors import DataError
from data.image_check import check_images
from data.images import ImageReading
from tests.helpers.together import run_together

FILES = [f"{number}.png" for number in range(6)]
LONG_AGO = 10**18  # nanoseconds


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A folder of images that counts as large, and whose files were written long ago."""
    monkeypatch.setattr(checked_files, "MANY", 4)
    monkeypatch.setattr(checked_files, "SETTLED", -(10**9))  # their ctime cannot be set
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "images"
    folder.mkdir()
    for number, file in enumerate(FILES):
        Image.new("RGB", (8 + number, 6)).save(folder / file)
    return folder


@pytest.fixture
def opened(monkeypatch):
    """The names of the files whose headers are read."""
    names = []
    read = image_check.read_header

    def noting(path, *args):
        names.append(Path(path).name)
        return read(path, *args)

    monkeypatch.setattr(image_check, "read_header", noting)
    return names


def test_each_file_is_read_once(root, opened):
    first = check_images(root, FILES)
    assert sorted(opened) == FILES
    assert first.sizes == tuple((6, 8 + number) for number in range(6))
    opened.clear()
    assert check_images(root, FILES) == first
    assert opened == []
    assert sorted(os.listdir(root)) == FILES  # nothing lies among the user's images
    assert (root.parent / ".images.checked").exists()


def test_lists_of_other_files_in_the_folder_do_not_replace_each_other(root, opened):
    """Such as those of train and val."""
    for number in range(6, 10):
        Image.new("RGB", (8 + number, 6)).save(root / f"{number}.png")
    one, two = FILES[:5], [f"{number}.png" for number in range(5, 10)]
    first = check_images(root, one), check_images(root, two)
    assert sorted(opened) == sorted([*one, *two])
    opened.clear()
    assert (check_images(root, one), check_images(root, two)) == first
    assert opened == []


def test_a_small_folder_is_just_read(root, opened):
    check_images(root, FILES[:3])
    check_images(root, FILES[:3])
    assert len(opened) == 6
    assert not (root.parent / ".images.checked").exists()


@pytest.mark.parametrize("change", ["content", "same size", "touched", "replaced"])
def test_what_has_changed_is_read_again(root, opened, change):
    check_images(root, FILES)
    opened.clear()
    path = root / "2.png"
    if change == "content":
        Image.new("RGB", (99, 6)).save(path)
    elif change == "same size":  # as long, and cut off
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2].ljust(len(content), b"\0"))
    elif change == "touched":
        os.utime(path)
    else:
        Image.new("RGB", (10, 6)).save(root.parent / "other.png")
        os.replace(root.parent / "other.png", path)
    if change == "same size":
        with pytest.raises(DataError, match="2.png"):
            check_images(root, FILES)
    else:
        check_images(root, FILES)
    assert opened[0] == "2.png"
    assert set(opened) == {"2.png"}


def test_a_file_that_has_just_been_written_is_not_trusted(root, opened, monkeypatch):
    monkeypatch.setattr(checked_files, "SETTLED", 3600 * 10**9)
    check_images(root, FILES)
    check_images(root, FILES)
    assert len(opened) == 12


def test_a_bad_file_is_named_at_every_start(root, opened):
    (root / "1.png").write_bytes(b"no image")
    for times in (6, 7):  # only the bad one is read again
        with pytest.raises(DataError, match=r"1\.png"):
            check_images(root, FILES)
        assert len(opened) == times


def test_a_missing_file_is_named(root):
    check_images(root, FILES)
    (root / "4.png").unlink()
    with pytest.raises(DataError, match=r"4\.png: image is missing"):
        check_images(root, FILES)


def test_another_limit_of_pixels_counts(root):
    check_images(root, FILES)
    with pytest.raises(DataError, match="3.png"):
        check_images(root, FILES, ImageReading(max_pixels=63))


@pytest.mark.parametrize("damage", [b"", b"junk", None])
def test_what_was_remembered_may_be_damaged(root, opened, damage):
    first = check_images(root, FILES)
    path = root.parent / ".images.checked"
    content = bytearray(path.read_bytes())
    content[70] ^= 1
    path.write_bytes(content if damage is None else damage)
    opened.clear()
    assert check_images(root, FILES) == first
    assert sorted(opened) == FILES


def test_a_cache_folder_serves_where_nothing_can_be_written(root, opened, monkeypatch):
    refuse = root.parent / ".images.checked"
    refuse.mkdir()  # a folder cannot be replaced by a file
    check_images(root, FILES)
    opened.clear()
    check_images(root, FILES)
    assert opened == []


def test_without_any_place_files_are_read_each_time(root, opened, monkeypatch):
    (root.parent / ".images.checked").mkdir()
    (root.parent / "cache").write_text("no folder")
    monkeypatch.setattr("tempfile.tempdir", str(root.parent / "cache"))
    check_images(root, FILES)
    check_images(root, FILES)
    assert len(opened) == 12


def _check(folder, log):
    read = image_check.read_header

    def noting(path, *args):
        with open(log, "a") as file:
            file.write(f"{path}\n")
        return read(path, *args)

    image_check.read_header = noting
    check_images(folder, FILES)


def test_of_processes_that_start_together_one_reads(root, tmp_path):
    log = tmp_path / "log"
    run_together(4, _check, root, log)
    assert len(log.read_text().splitlines()) == len(FILES)
