"""The packed form of a large JSON is made once, and never one of another content is taken."""

from __future__ import annotations

import json
import os
import pickle
import shutil

import pytest

from data import coco_file, coco_packing, packed_coco
from data.coco_file import open_coco
from data.errors import DataError
from tests.helpers.coco_quirks import plain
from tests.helpers.together import run_together


@pytest.fixture
def path(tmp_path, monkeypatch):
    """A JSON that counts as large, written a while ago."""
    monkeypatch.setattr(coco_file, "LARGE_FILE", 100)
    monkeypatch.setattr(coco_file, "TICK", 0.02)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "labels").mkdir()
    write(tmp_path / "labels" / "a.json")
    return tmp_path / "labels" / "a.json"


def write(path, first=1):
    content = plain()
    content["annotations"][0]["bbox"] = [first, 2, 20, 20]
    path.write_text(json.dumps(content))


@pytest.fixture
def readings(monkeypatch):
    """The paths of the JSON files that are packed."""
    paths = []
    pack = coco_file.pack_coco
    monkeypatch.setattr(
        coco_file, "pack_coco", lambda path, *rest: (paths.append(str(path)), pack(path, *rest))
    )
    return paths


def unwritable(places):
    """`places`, the first of which is no folder."""
    return lambda source, suffix: [source / "no folder" / "x", *places(source, suffix)[1:]]


def first(coco):
    return coco.as_dict()["annotations"][0]["bbox"][0]


def test_it_is_read_once(path, readings):
    expected = open_coco(path).as_dict()
    for _ in range(2):
        assert open_coco(path).as_dict() == expected
    assert readings == [str(path)]
    assert sorted(os.listdir(path.parent)) == ["a.json", "a.json.packed"]


def test_a_small_file_leaves_nothing_behind(path, readings, monkeypatch):
    monkeypatch.setattr(coco_file, "LARGE_FILE", 1e6)
    open_coco(path)
    assert first(open_coco(path)) == 1
    assert len(readings) == 2
    assert os.listdir(path.parent) == ["a.json"]


def test_a_packed_file_needs_no_json(path):
    open_coco(path)
    path.unlink()
    assert first(open_coco(path.with_name("a.json.packed"))) == 1


def test_another_process_opens_the_file_again(path):
    coco = open_coco(path)
    sent = pickle.dumps(coco)
    assert len(sent) < 500
    assert pickle.loads(sent).as_dict() == coco.as_dict()


def test_another_content_is_packed_anew(path, readings):
    for number in range(1, 6):  # of the same length, and in quick succession
        write(path, first=number)
        assert first(open_coco(path)) == number
    assert len(readings) == 5


def test_a_content_with_the_time_of_another_is_noticed(path, readings):
    open_coco(path)
    before = os.stat(path)
    write(path, first=7)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert first(open_coco(path)) == 7


def test_copies_of_both_are_taken_after_a_look_at_the_content(path, readings, tmp_path):
    open_coco(path)
    shutil.copytree(path.parent, tmp_path / "moved")
    copy = tmp_path / "moved" / "a.json"
    assert first(open_coco(copy)) == 1
    os.utime(copy)
    assert first(open_coco(copy)) == 1
    assert readings == [str(path)]
    write(copy, first=3)
    assert first(open_coco(copy)) == 3


def test_a_damaged_one_is_made_anew(path, readings):
    open_coco(path)
    kept = path.with_name("a.json.packed")
    for damage in (b"", kept.read_bytes()[:-40], b"x" + kept.read_bytes()[1:]):
        kept.write_bytes(damage)
        assert first(open_coco(path)) == 1
    assert len(readings) == 4


def test_that_of_another_version_is_made_anew(path, readings, monkeypatch):
    monkeypatch.setattr(coco_packing, "VERSION", 0)
    monkeypatch.setattr(packed_coco, "VERSION", 0)
    open_coco(path)
    monkeypatch.undo()
    monkeypatch.setattr(coco_file, "LARGE_FILE", 100)
    assert first(open_coco(path)) == 1
    kept = path.with_name("a.json.packed")
    assert packed_coco.PackedCoco(packed_coco.Packed(kept)).packed.content["version"] == 1


def test_where_its_folder_cannot_be_written_a_cache_folder_serves(path, readings, monkeypatch):
    monkeypatch.setattr(coco_file, "places", unwritable(coco_file.places))
    for _ in range(2):
        assert first(open_coco(path)) == 1
    assert len(readings) == 1
    write(path, first=5)
    assert first(open_coco(path)) == 5


def test_where_nothing_can_be_written_it_is_said(path, tmp_path, monkeypatch):
    monkeypatch.setattr(coco_file, "places", unwritable(coco_file.places))
    (tmp_path / "cache").write_text("no folder")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "cache"))
    with pytest.raises(DataError, match="cannot be written"):
        open_coco(path)


def test_a_file_that_changes_while_it_is_read_is_not_taken(path, monkeypatch):
    pack = coco_file.pack_coco

    def slowly(source, *rest):
        pack(source, *rest)
        write(path, first=8)

    monkeypatch.setattr(coco_file, "pack_coco", slowly)
    with pytest.raises(DataError, match="has changed while it was read"):
        open_coco(path)
    assert os.listdir(path.parent) == ["a.json"]


def test_a_bad_file_leaves_nothing_behind(path):
    path.write_text(path.read_text().replace('"image_id": 1', '"image_id": 9'))
    with pytest.raises(DataError, match="annotation 1 has image_id 9"):
        open_coco(path)
    assert os.listdir(path.parent) == ["a.json"]


def _open(path, log):
    pack = coco_file.pack_coco

    def noting(source, *rest):
        with open(log, "a") as file:
            file.write("packed\n")
        pack(source, *rest)

    coco_file.pack_coco = noting
    assert first(open_coco(path)) == 1


def test_processes_that_start_together_make_it_once(path, tmp_path):
    log = tmp_path / "log"
    run_together(4, _open, path, log)
    assert log.read_text() == "packed\n"
