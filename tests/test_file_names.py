"""File names of other machines and folders: found where exactly one file fits, never guessed."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import pytest

from data import file_names
from data.errors import DataError
from data.file_names import locate_files
from tests.helpers.assertions import assert_clean

COMPOSED = unicodedata.normalize("NFC", "é")
APART = unicodedata.normalize("NFD", "é")


@pytest.fixture
def folder(tmp_path):
    """A function that makes empty files and returns their folder."""

    def make(*files):
        for file in files:
            path = tmp_path / "images" / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        return tmp_path / "images"

    return make


@pytest.mark.parametrize(
    ("files", "name", "expected"),
    [
        (["a.png"], "a.png", "a.png"),
        (["sub/a.png"], "sub/a.png", "sub/a.png"),
        (["sub/a.png"], "./sub//a.png", "sub/a.png"),
        (["a%20b.png", "a b.png"], "a%20b.png", "a%20b.png"),  # as it is comes first
        (["a b.png"], "a%20b.png", "a b.png"),
        (["a%20b.png"], "a b.png", "a%20b.png"),
        (["100%.png"], "images\\100%.png", "100%.png"),
        (["sub/a.png"], "sub\\a.png", "sub/a.png"),
        (["sub/a.png"], ".\\sub\\a.png", "sub/a.png"),
        (["sub/a.png", "a.png"], "sub\\a.png", "sub/a.png"),  # the whole path before an end of it
        (["sub/a.png"], "other/../sub/a.png", "sub/a.png"),
        (["sub/a.png"], "../images/sub/a.png", "sub/a.png"),  # the same folder
        (["sub/a.png"], "../elsewhere/sub/a.png", "sub/a.png"),
        (["a.png"], "D:\\photos\\a.png", "a.png"),
        (["a.png"], "file:///C:/photos/a.png", "a.png"),
        (["a.png"], "http://[/a.png", "a.png"),  # no URL, but a path
        (["x/sub/a.png"], "sub/a.png", "x/sub/a.png"),  # folders missing in the name
        (["x/a.png", "x/b.png"], "a.png", "x/a.png"),
        (["a.PNG"], "a.png", "a.PNG"),
        (["Sub/A.png", "other/a.png"], "sub/a.PNG", "Sub/A.png"),
        (["A.png", "a.png"], "images/a.png", "a.png"),  # the same case before another
        ([f"caf{COMPOSED}.png"], f"x\\caf{APART}.png", f"caf{COMPOSED}.png"),
        ([f"caf{APART}.png"], "caf%C3%A9.png", f"caf{APART}.png"),
        (["a.png"], "upload/1/0f3a9c21-a.png", "a.png"),
        (["0f3a9c21-a.png", "a.png"], "x/0f3a9c21-a.png", "0f3a9c21-a.png"),
        (["a.png "], "a.png ", "a.png "),
        (["a.png"], " a.png", "a.png"),
    ],
)
def test_the_file_that_fits(folder, files, name, expected):
    root = folder(*files)
    found = locate_files(root, [name], "a.json")
    assert found == [expected]
    assert (root / expected).is_file()


def test_absolute_names_become_relative_below_the_folder(folder, tmp_path):
    root = folder("sub/a.png")
    assert locate_files(root, [str(root / "sub/a.png")], "a.json") == ["sub/a.png"]
    assert locate_files(root, [str(root / "x/../sub/a.png")], "a.json") == ["sub/a.png"]


def test_names_below_a_link_to_the_folder_are_in_it(folder, tmp_path):
    root = folder("sub/a.png")
    (tmp_path / "link").symlink_to(root)
    expected = ["sub/a.png"]
    assert locate_files(tmp_path / "link", [str(root / "sub/a.png")], "a.json") == expected
    assert locate_files(root, [str(tmp_path / "link/sub/a.png")], "a.json") == expected
    assert locate_files(root, ["../link/sub/a.png"], "a.json") == expected


def test_a_file_outside_of_the_folder_is_refused_unless_it_is_allowed(folder, tmp_path):
    root = folder("sub/a.png", "b.png")
    (tmp_path / "b.png").touch()
    for name in ("../b.png", "sub/../../b.png", str(tmp_path / "b.png"), f"{root}/../b.png"):
        for missing_ok in (False, True):
            with pytest.raises(DataError) as error:
                locate_files(root, ["sub/a.png", name, name], "a.json", missing_ok)
            assert_clean(error, root, "a.json: the file_name", name, "leads out", "1 more file")
            assert "data.allow_outside=true" in str(error.value)
        names = ["sub/a.png", name]
        assert locate_files(root, names, "a.json", allow_outside=True) == names


def test_links_in_the_folder_are_the_users_own(folder, tmp_path):
    root = folder("a.png")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/b.png").touch()
    (root / "link").symlink_to(tmp_path / "elsewhere")
    (root / "c.png").symlink_to(tmp_path / "elsewhere/b.png")
    names = ["link/b.png", "c.png", str(root / "link/b.png")]
    assert locate_files(root, names, "a.json") == ["link/b.png", "c.png", "link/b.png"]


@pytest.mark.parametrize("name", ["../../gone.png", "/gone/a.png", "..", "/", "../.."])
def test_a_missing_file_outside_is_not_read_later(folder, name):
    """It may appear, or lie in a folder that can be entered but not listed."""
    (found,) = locate_files(folder("b.png"), [name], "a.json", missing_ok=True)
    assert not Path(found).is_absolute()
    assert ".." not in Path(found).parts
    with pytest.raises(DataError, match="image is missing"):
        locate_files(folder("b.png"), [name], "a.json")


@pytest.mark.parametrize(
    ("files", "name"),
    [
        (["x/a.png", "y/a.png"], "a.png"),
        (["a.png", "sub/a.png"], "/home/ann/sub/a.png"),  # of ann's folder or of its sub
        (["A.png", "a.PNG"], "a.png"),
        (["x/a.png", "y/a.png"], "0f3a9c21-a.png"),
    ],
)
def test_two_files_that_fit_are_no_guess(folder, files, name):
    if name.lower() == "a.png" and os.path.exists(folder(*files) / "a.png"):
        pytest.skip("the file system ignores case")
    with pytest.raises(DataError) as error:
        locate_files(folder(*files), [name], "a.json")
    assert_clean(error, "a.json", repr(name), "fits 2 files", *files, "correct it")


@pytest.mark.parametrize(
    ("files", "names"),
    [
        (["a.png"], ["train/a.png", "val/a.png"]),
        (["a.png"], ["a.png", "train/a.png"]),
        (["a.png"], ["x/0f3a9c21-a.png", "x/0f3a9c22-a.png"]),
    ],
)
@pytest.mark.parametrize("missing_ok", [False, True])
def test_two_names_for_one_file_are_an_error(folder, files, names, missing_ok):
    with pytest.raises(DataError) as error:
        locate_files(folder(*files), names, "a.json", missing_ok)
    assert_clean(error, "a.json", repr(names[0]), repr(names[1]), "both fit", "correct them")


def test_the_same_file_listed_twice_is_found_twice(folder):
    names = ["a.png", "./a.png", "a.png"]
    assert locate_files(folder("a.png"), names, "a.json") == ["a.png"] * 3
    assert locate_files(folder("b b.png"), ["b%20b.png"] * 2, "a.json") == ["b b.png"] * 2


@pytest.mark.parametrize(
    ("files", "name"),
    [
        (["b.png"], "a.png"),
        (["b.png"], "sub/b.png/a.png"),
        (["other/a.png"], "sub/a.png"),
        (["a.jpg"], "a.png"),
        (["sub/a.png"], "sub/"),
        (["sub/a.png"], ".."),
        (["a.png"], "a\0\n.png"),
        (["a.png"], "a" * 5000),
        (["a.png"], "///"),
    ],
)
def test_a_file_that_is_missing(folder, files, name):
    root = folder(*files)
    with pytest.raises(DataError) as error:
        locate_files(root, [name, name + "x"], "a.json")
    assert_clean(
        error,
        "a.json",
        "image is missing",
        "restore it or remove its entry",
        "(and 1 more file like it)",
    )
    assert len(str(error.value)) < len(str(root)) + 800
    expected = "_" if name in ("..", "///") else name  # what leads out is not to be read
    assert locate_files(root, [name], "a.json", missing_ok=True) == [expected]


def test_the_message_shows_what_was_looked_for(folder):
    root = folder("b.png")
    with pytest.raises(DataError) as error:
        locate_files(root, ["images\\0f3a9c21-a%20b.png"], "labels.json")
    assert_clean(
        error,
        root / "images\\0f3a9c21-a%20b.png",
        "labels.json",
        str(root),
        "looked for images/0f3a9c21-a b.png or 0f3a9c21-a b.png or images/a b.png or a b.png",
    )


def test_a_missing_file_is_not_found_in_another_folder(folder):
    """Other names of its folder exist as they are, so the folders of the names are right."""
    root = folder("a.png", "test/b.png", "C.png")
    with pytest.raises(DataError, match=r"b\.png: image is missing"):
        locate_files(root, ["a.png", "b.png"], "a.json")
    assert locate_files(root, ["b.png"], "a.json") == ["test/b.png"]
    assert locate_files(root, ["a.png", "%43.png"], "a.json") == ["a.png", "C.png"]


def test_folders_are_listed_once_and_searched_only_if_a_file_is_missing(folder, monkeypatch):
    files = [f"{sub}/{i}.png" for sub in "xy" for i in range(50)]
    root, listed, searched = folder(*files), [], []
    names_in, list_images = file_names._names_in, file_names.list_images
    monkeypatch.setattr(file_names, "_names_in", lambda f: listed.append(f) or names_in(f))
    monkeypatch.setattr(file_names, "list_images", lambda d: searched.append(d) or list_images(d))
    monkeypatch.setattr(Path, "exists", None)  # nothing is asked file by file
    monkeypatch.setattr(Path, "stat", None)
    monkeypatch.setattr(Path, "is_dir", lambda path: True)
    monkeypatch.setattr(Path, "is_file", None)
    assert locate_files(root, files, "a.json") == files
    assert (listed, searched) == ([root / "x", root / "y"], [])
    assert locate_files(root, [f"images/{file}" for file in files], "a.json") == files
    assert searched == [root]


def test_no_folder(tmp_path):
    with pytest.raises(DataError) as error:
        locate_files(tmp_path / "gone", ["a.png"], "a.json")
    assert_clean(error, tmp_path / "gone", "no such directory", "set data.*.images")
