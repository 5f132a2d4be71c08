"""Which files of a folder are its images: suffixes, hidden and system files, links, odd names."""

from __future__ import annotations

import os

import pytest
from PIL import Image

from data.errors import DataError
from data.images import read_image
from data.walk import files_below, list_images, readable_suffixes, walk_images
from tests.helpers.assertions import assert_clean


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def link(path, target):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target, target_is_directory=True)


def test_sorted_recursive_and_posix(tmp_path):
    names = ["b.jpg", "a/z.PNG", "a/b/c.jpeg", "c.bmp", "d.webp", "e.tif", "f.TIFF", "a b.jpg"]
    touch(tmp_path, *names, "notes.txt", "a/list.json", "jpg", "x.jpg.part")
    (tmp_path / "empty.jpg.d").mkdir()
    assert list_images(tmp_path) == sorted(names)
    assert list_images(str(tmp_path / "a")) == ["b/c.jpeg", "z.PNG"]


@pytest.mark.parametrize("suffix", [".JPG", ".jfif", ".gif", ".ppm", ".pgm", ".tga", ".jp2"])
def test_what_pillow_reads_is_listed(tmp_path, suffix):
    Image.new("L", (6, 4), 200).save(tmp_path / f"a{suffix}")
    assert list_images(tmp_path) == [f"a{suffix}"]
    assert read_image(tmp_path / f"a{suffix}").size == (6, 4)


def test_suffixes_without_a_picture_for_pillow():
    """Formats that it only writes, that need another program, or of which it reads the header."""
    suffixes = readable_suffixes()
    assert {".jpg", ".png", ".tif", ".webp", ".bmp", ".gif", ".mpo"} <= suffixes
    assert not suffixes & {".pdf", ".eps", ".ps", ".mpg", ".mpeg", ".h5", ".hdf", ".grib", ".bufr"}
    assert not suffixes & {".wmf", ".emf", ".txt", ".json", ".xml", ""}


HIDDEN = [
    "._a.jpg", ".a.jpg", ".DS_Store", "Thumbs.db", "desktop.ini", ".ipynb_checkpoints/a.jpg",
    "__MACOSX/._a.jpg", "@eaDir/a.jpg/SYNO.jpg", "#recycle/a.jpg", "$RECYCLE.BIN/a.jpg",
    "lost+found/a.jpg", ".Trash-1000/files/a.jpg", "System Volume Information/a.jpg",
]  # fmt: skip


@pytest.mark.parametrize("folder", ["", "deep/"])
@pytest.mark.parametrize("name", HIDDEN)
def test_hidden_and_system_files_are_left_out(tmp_path, name, folder):
    touch(tmp_path, "a.jpg", folder + name)
    listing = walk_images(tmp_path)
    assert listing.files == ("a.jpg",)
    assert listing.sentence() == "left out: 1 hidden"
    assert files_below(tmp_path, {".jpg"}) == [tmp_path / "a.jpg"]


def test_files_of_other_kinds(tmp_path):
    touch(tmp_path, "b.txt", "a/z.TXT", "a.xml", ".b.txt")
    assert files_below(tmp_path, {".txt"}) == [tmp_path / "a/z.TXT", tmp_path / "b.txt"]
    assert files_below(tmp_path, {".md"}) == files_below(tmp_path / "gone", {".md"}) == []


def test_a_folder_that_is_hidden_itself_can_be_given(tmp_path):
    touch(tmp_path, ".cache/photos/a.jpg", ".cache/photos/.b.jpg")
    assert list_images(tmp_path / ".cache/photos") == ["a.jpg"]


def test_other_files_are_counted_by_suffix(tmp_path):
    touch(tmp_path, "a.jpg", "a.txt", "d/b.TXT", "c.xml", "d.heic", "README", "d/.x")
    listing = walk_images(tmp_path)
    assert listing.left_out == {
        ".txt": 2,
        ".xml": 1,
        ".heic": 1,
        "without a suffix": 1,
        "hidden": 1,
    }
    expected = "left out: 2 .txt, 1 .heic, 1 .xml, 1 without a suffix, 1 hidden"
    assert listing.sentence() == expected
    touch(tmp_path, *(f"x.{letter}{letter}{letter}{letter}" for letter in "bcdefg"))
    assert walk_images(tmp_path).sentence() == (
        "left out: 2 .txt, 1 .bbbb, 1 .cccc, 1 .dddd, 1 .eeee, 1 .ffff, 3 of other kinds, "
        "1 without a suffix, 1 hidden"
    )
    (tmp_path / "clean").mkdir()
    touch(tmp_path, "clean/a.jpg")
    assert walk_images(tmp_path / "clean").sentence() is None


def test_a_folder_with_the_name_of_an_image(tmp_path):
    touch(tmp_path, "photo.jpg/a.png")
    assert list_images(tmp_path) == ["photo.jpg/a.png"]


def test_names_that_differ_in_case_only(tmp_path):
    touch(tmp_path, "a.jpg", "A.jpg", "a.JPG")
    assert list_images(tmp_path) == sorted(os.listdir(tmp_path))  # one or three, by the system


def test_a_dangling_link_is_listed(tmp_path):
    touch(tmp_path, "a.jpg")
    (tmp_path / "b.jpg").symlink_to(tmp_path / "gone.jpg")
    assert list_images(tmp_path) == ["a.jpg", "b.jpg"]  # reading it says that it is missing


def test_a_pipe_is_no_image(tmp_path):
    if not hasattr(os, "mkfifo"):
        pytest.skip("needs named pipes")
    touch(tmp_path, "a.jpg")
    os.mkfifo(tmp_path / "b.jpg")  # opening it would wait for ever
    assert walk_images(tmp_path).sentence() == "left out: 1 .jpg"


def test_links_that_lead_back_are_not_followed(tmp_path):
    """Up to the folder, above it, beside it, to themselves, in a circle of two."""
    root = tmp_path / "photos"
    touch(root, "a.jpg", "d/b.jpg", "d/e/c.jpg")
    touch(tmp_path, "other/x.jpg")
    link(root / "d/back", root)
    link(root / "d/parent", "..")
    link(root / "above", tmp_path)
    link(root / "top", "/")
    link(root / "self", root / "self")
    link(root / "one", root / "two")
    link(root / "two", root / "one")
    link(root / "again", root / "d")
    assert list_images(root) == ["a.jpg", "d/b.jpg", "d/e/c.jpg"]


def test_folders_elsewhere_are_followed_once(tmp_path):
    root = tmp_path / "photos"
    touch(tmp_path, "photos/a.jpg", "disk/b.jpg", "disk/sub/c.jpg", "disk/z/d.jpg")
    link(root / "y", tmp_path / "disk")
    link(root / "x", tmp_path / "disk/sub")
    link(root / "z", tmp_path / "disk")
    link(tmp_path / "disk/sub/up", tmp_path / "disk")  # holds the link, is not among the photos
    assert list_images(root) == ["a.jpg", "x/c.jpg", "y/b.jpg", "y/z/d.jpg"]
    link(tmp_path / "link", root)
    assert list_images(tmp_path / "link") == list_images(root)


def test_a_folder_that_cannot_be_opened(tmp_path, monkeypatch):
    touch(tmp_path, "a.jpg", "secret/b.jpg")
    scandir = os.scandir

    def denied(path):
        if os.path.basename(path) == "secret":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(DataError) as error:
        list_images(tmp_path)
    assert_clean(error, tmp_path / "secret", "cannot be opened (Permission denied)", "move it away")


def test_names_that_are_not_utf8(tmp_path):
    name = os.fsdecode(b"caf\xe9.jpg")
    try:
        touch(tmp_path, name, os.fsdecode(b"x.\xe9"), "a.jpg")
    except OSError:
        pytest.skip("this file system takes only valid names")
    listing = walk_images(tmp_path)
    assert listing.files == ("a.jpg", name)
    assert listing.sentence() == r"left out: 1 .\udce9"
    listing.sentence().encode("ascii")


def test_nothing_to_list(tmp_path):
    with pytest.raises(DataError) as error:
        list_images(tmp_path / "nowhere")
    assert_clean(error, tmp_path / "nowhere", "no such directory", "give the folder")
    with pytest.raises(DataError) as error:
        list_images(tmp_path)
    assert_clean(error, tmp_path, "holds no image (it is empty)", ".jpg", ".webp")
    touch(tmp_path, "a.heic", "b.HEIC", "d/c.txt")
    with pytest.raises(DataError) as error:
        list_images(tmp_path)
    assert_clean(error, tmp_path, "holds no image (left out: 2 .heic, 1 .txt)", "convert")


def test_an_image_that_links_to_itself_is_left_to_the_reader(tmp_path):
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    (tmp_path / "a.jpg").touch()
    assert list_images(tmp_path) == ["a.jpg", "loop.jpg"]
