"""Files that are written whole or not at all."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
import torch

from data import atomic_files
from data.atomic_files import open_atomic, remove_leftovers
from data.errors import StorageError

ROOT = Path(__file__).parent.parent
DiskUsage = namedtuple("DiskUsage", "total used free")


def failing(monkeypatch, number):
    def fsync(descriptor):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(atomic_files.os, "fsync", fsync)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_says_what_is_needed_and_keeps_the_old_file(tmp_path, monkeypatch, number):
    path = tmp_path / "a.pt"
    path.write_text("old")
    failing(monkeypatch, number)
    needed = r"12\.3 MB are needed, [\d,.]+ MB are free\); make room, or choose another place$"
    with pytest.raises(StorageError, match=rf"a\.pt: cannot be written \(.*{needed}"):  # noqa: SIM117
        with open_atomic(path, size=12_345_678) as file:
            file.write("new")
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"a.pt": "old"}


def test_what_is_free_is_measured_without_the_rest(tmp_path, monkeypatch):
    failing(monkeypatch, errno.ENOSPC)
    there = []
    monkeypatch.setattr(
        atomic_files.shutil,
        "disk_usage",
        lambda path: there.extend(path.iterdir()) or DiskUsage(0, 0, 7e6),
    )
    with pytest.raises(StorageError, match=r"7\.0 MB"), open_atomic(tmp_path / "a"):
        pass
    assert there == []


def test_other_reasons_are_named(tmp_path, monkeypatch):
    failing(monkeypatch, errno.EROFS)
    with pytest.raises(StorageError, match=r"a: cannot be written \(Read-only file system\); "):  # noqa: SIM117
        with open_atomic(tmp_path / "a"):
            pass


def test_a_file_where_a_folder_should_be(tmp_path):
    (tmp_path / "run").write_text("mine")
    with pytest.raises(StorageError, match=r"run/last\.pt: cannot be written \("):  # noqa: SIM117
        with open_atomic(tmp_path / "run" / "last.pt"):
            pass
    assert (tmp_path / "run").read_text() == "mine"


def test_a_folder_where_a_file_should_be(tmp_path):
    (tmp_path / "last.pt").mkdir()
    with pytest.raises(StorageError, match=r"last\.pt: cannot be written \(Is a directory\)"):  # noqa: SIM117
        with open_atomic(tmp_path / "last.pt") as file:
            file.write("x")
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]


LIMITED = """
import resource, sys, torch
from data.atomic_files import open_atomic
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    with open_atomic(sys.argv[1], binary=True) as file:
        torch.save({"a": torch.zeros(1_000_000)}, file)
except ValueError as error:
    print(error)
"""


def test_what_torch_makes_of_a_full_disk(tmp_path):
    """torch.save raises a RuntimeError about a position in the file."""
    path = tmp_path / "a.pt"
    torch.save({}, path)
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(path)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.stdout.startswith(f"{path}: cannot be written (File too large); "), done.stderr
    assert torch.load(path) == {}
    assert [p.name for p in tmp_path.iterdir()] == ["a.pt"]


def test_errors_of_the_block_pass(tmp_path):
    with pytest.raises(RuntimeError, match="mine"), open_atomic(tmp_path / "a"):
        raise RuntimeError("mine")
    assert list(tmp_path.iterdir()) == []


def test_only_our_own_leftovers_are_removed(tmp_path):
    ours = f".last.pt.{'0a' * 16}.tmp"
    theirs = [
        ".notes.tmp",
        "last.pt.tmp",
        f"last.pt.{'0a' * 16}.tmp",
        f".x.{'0A' * 16}.tmp",
        ".tmp",
    ]
    for name in (ours, *theirs):
        (tmp_path / name).touch()
    remove_leftovers(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(theirs)
