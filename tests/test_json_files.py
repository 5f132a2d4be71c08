"""Files are written all or nothing, whatever stops the write."""

from __future__ import annotations

import json

import pytest

from data.json_files import open_atomic, write_json_atomic


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
    with pytest.raises(OSError, match="no space"):
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
