"""What is made from a file lies beside it or in a folder of one's own, and is made once."""

from __future__ import annotations

import os
import threading
import time

import pytest

from data import kept_beside
from data.errors import StorageError
from data.kept_beside import is_own, locked, places, write_first
from tests.helpers.together import run_together


@pytest.fixture
def source(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    path = tmp_path / "labels" / "a.json"
    path.parent.mkdir()
    path.write_text("{}")
    return path


def test_the_best_place_is_beside_the_source(source, tmp_path, monkeypatch):
    first, second, third = places(source, ".packed")
    assert first == source.with_name("a.json.packed")
    assert second.parent == tmp_path / "cache" / "aligndet"
    assert third.parent.parent == tmp_path / "temporary"
    assert second.name == third.name
    assert places(source.parent, ".checked", hidden=True)[0] == tmp_path / ".labels.checked"
    monkeypatch.chdir(source.parent)
    assert places("a.json", ".packed")[:2] == [first, second]
    assert places(".", ".checked", hidden=True)[0] == tmp_path / ".labels.checked"


def test_files_of_one_name_do_not_share_a_place(source):
    other = source.parent / "sub" / "a.json"
    assert places(source, ".packed")[1] != places(other, ".packed")[1]


def test_the_first_place_that_can_be_written_is_taken(source, tmp_path):
    targets = [source / "no folder" / "x", *places(source, ".packed")[1:]]
    folders = []

    def write(file, folder):
        folders.append(folder)
        file.write(b"content")

    found = write_first(targets, write)
    assert found == targets[1]
    assert found.read_bytes() == b"content"
    assert folders == [found.parent]
    assert found.parent.stat().st_mode & 0o777 == 0o700  # nobody else shall write there


def test_other_peoples_folders_are_not_used(source, tmp_path, monkeypatch):
    if not hasattr(os, "getuid"):
        pytest.skip("this system has no users to tell apart")
    targets = [source / "no folder" / "x", *places(source, ".packed")[1:]]
    monkeypatch.setattr(kept_beside, "is_own", lambda path: "temporary" in str(path))
    assert write_first(targets, lambda file, folder: None) == targets[2]
    monkeypatch.undo()
    assert is_own(source)


def test_without_a_place_the_last_problem_is_raised(source):
    targets = [source / "no folder" / "x", source / "none" / "y"]
    with pytest.raises(StorageError, match="none"):
        write_first(targets, lambda file, folder: None)


def _hold(path, log):
    os.environ["LOCAL_RANK"] = "1"
    with locked(path):
        with open(log, "a") as file:
            file.write("in ")
        time.sleep(0.05)
        with open(log, "a") as file:
            file.write("out ")


@pytest.mark.parametrize("what", ["file", "folder"])
def test_one_process_at_a_time(source, tmp_path, what):
    if kept_beside.fcntl is None:
        pytest.skip("this system has no such locks")
    path = source if what == "file" else source.parent
    log = tmp_path / "log"
    run_together(3, _hold, path, log)
    assert log.read_text() == "in out " * 3


def test_where_there_are_no_locks_work_goes_on(source, monkeypatch):
    monkeypatch.setattr(kept_beside, "fcntl", None)
    with locked(source):
        pass


def test_who_waits_says_so(source, capsys):
    if kept_beside.fcntl is None:
        pytest.skip("this system has no such locks")
    with open(source, "rb") as file:
        kept_beside.fcntl.flock(file, kept_beside.fcntl.LOCK_EX)
        release = threading.Timer(0.2, lambda: kept_beside.fcntl.flock(file, 8))  # LOCK_UN
        release.start()
        with locked(source):
            pass
        release.join()
    said = capsys.readouterr().err
    assert said == f"another process reads {source}, this one waits for it\n"
