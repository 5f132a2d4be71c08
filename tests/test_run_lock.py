"""Two processes and one run directory."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from aligndet import run_lock
from aligndet.run_lock import RunLock
from data.errors import DataError, StorageError

ROOT = Path(__file__).parent.parent
HOLDER = """
import os, sys, time
from pathlib import Path
from aligndet.run_lock import RunLock
lock = RunLock(Path(sys.argv[1]))
if os.fork() == 0:  # as a loader's worker does
    time.sleep(60)
    os._exit(0)
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock, and a child of it that outlives it."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout.readline() == "held\n"
    yield process
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def test_a_second_run_is_refused_until_the_first_is_dead(holder, tmp_path):
    with pytest.raises(DataError, match=rf"another run is .*\(process {holder.pid} on .*\); wait"):
        RunLock(tmp_path)
    holder.kill()
    holder.wait()
    RunLock(tmp_path)
    assert f"process {os.getpid()} " in (tmp_path / ".lock").read_text()


def test_a_file_system_without_locks(monkeypatch, tmp_path):
    def no_locks(*args):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(run_lock.fcntl, "lockf", no_locks)
    RunLock(tmp_path)


def test_a_directory_that_cannot_be_written(tmp_path):
    with pytest.raises(StorageError, match=r"gone/\.lock: cannot be written \(No such file"):
        RunLock(tmp_path / "gone")
