"""JSON is read in any Unicode encoding; files are written all or nothing, whatever stops it."""

from __future__ import annotations

import json

import pytest

from data import json_files
from data.atomic_files import open_atomic
from data.errors import DataError, StorageError
from data.json_files import read_json, write_json_atomic
from tests.helpers.assertions import assert_clean


@pytest.mark.parametrize(
    "encoding",
    ["utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-16-le with mark", "utf-16-be with mark"],
)
def test_encodings(tmp_path, encoding):
    """As editors and shells of Windows save JSON."""
    content = {"a": [1, 2.5, "ä", "犬"]}
    name, _, mark = encoding.partition(" with ")
    text = ("\ufeff" if mark else "") + json.dumps(content, ensure_ascii=False)
    (tmp_path / "x.json").write_bytes(text.encode(name))
    assert read_json(tmp_path / "x.json") == content


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b'{"images": [', "Expecting value"),
        (b'{"a": 1}\n{"a": 2}\n', "Extra data"),
        (b"{'a': 1}", "Expecting property name"),
        (b"", "the file is empty"),
        (b"\xff\xfe", "Expecting value"),
        (b" \n", "Expecting value"),
        (b"\xff\xfe\x00", "byte 0x00 is not UTF-16"),
        (b'{"a": "\xe9"}', "byte 0xe9 is not UTF-8"),
        (b"\x1f\x8b\x08\x00", "byte 0x8b is not UTF-8"),
        (b'{"a": ' + b"1" * 5000 + b"}", "4300 digits"),
        (b"[" * 200_000 + b"]" * 200_000, "nested too deeply"),
    ],
)
def test_what_is_not_json(tmp_path, data, words):
    path = tmp_path / "x.json"
    path.write_bytes(data)
    with pytest.raises(DataError) as error:
        read_json(path)
    assert_clean(error, path, "not valid JSON", words, "write the file again")


def test_missing_file_and_folder_in_its_place(tmp_path):
    with pytest.raises(DataError) as error:
        read_json(tmp_path / "gone.json")
    assert_clean(error, tmp_path / "gone.json", "no such file", "give the path")
    with pytest.raises(DataError) as error:
        read_json(tmp_path)
    assert_clean(error, tmp_path, "cannot be read (Is a directory)", "make it readable")


def test_write_json_makes_folders_and_replaces(tmp_path):
    path = tmp_path / "new" / "folder" / "x.json"
    write_json_atomic({"a": [1, 2.5, "ä"]}, path)
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": [1, 2.5, "ä"]}
    write_json_atomic([], str(path))
    assert json.loads(path.read_text(encoding="utf-8")) == []
    assert [p.name for p in path.parent.iterdir()] == ["x.json"]


def test_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "x.json"
    write_json_atomic({"old": True}, path)
    with pytest.raises(TypeError):
        write_json_atomic({"a": list(range(1000)), "b": object()}, path)
    assert json.loads(path.read_text()) == {"old": True}
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    write_json_atomic({"old": True}, path)

    def full(descriptor):
        raise OSError("no space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StorageError, match="no space"):
        write_json_atomic({"new": True}, path)
    assert json.loads(path.read_text()) == {"old": True}


@pytest.mark.parametrize("sync", [True, False])
def test_bytes_are_written_all_or_nothing_too(tmp_path, sync):
    path = tmp_path / "new/x.bin"
    with open_atomic(path, binary=True, sync=sync) as file:
        file.write(b"old")

    def killed_while_writing():
        with open_atomic(path, binary=True, sync=sync) as file:
            file.write(b"new, but not all of it")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        killed_while_writing()
    assert path.read_bytes() == b"old"
    assert [p.name for p in path.parent.iterdir()] == ["x.bin"]


def test_a_large_file_is_announced_by_one_process_of_a_machine(tmp_path, monkeypatch, capsys):
    path = tmp_path / "a.json"
    path.write_text("[1, 2]")
    read_json(path)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(json_files, "LARGE_FILE", 6)
    assert read_json(path) == [1, 2]
    assert capsys.readouterr().err == f"reading {path} (0 MB)\n"
    monkeypatch.setenv("LOCAL_RANK", "1")
    read_json(path)
    assert capsys.readouterr().err == ""
