"""Workers give equal batches however they are started; a lost one costs one line, and no hang."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from data import worker_pool
from data.batch_channel import LEAST_SHARED
from data.errors import DataError
from data.loaders import eval_loader, iterate
from data.worker_pool import AHEAD, WorkerError
from tests.helpers.odd_samples import Exiting, Plain, Raising, Signalled, Unusual, stack

POSIX = pytest.mark.skipif(sys.platform == "win32", reason="needs signals")
LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")


def loader(dataset, workers=2):
    return eval_loader(dataset, [1.0] * len(dataset), stack, 1, workers)


def first_values(batches):
    return [int(batch["samples"][0, 0]) for batch in batches]


def loaded_before(dataset, kind, workers=2):
    """First values of the batches before an error, and its message."""
    running, got = set(multiprocessing.active_children()), []
    with pytest.raises(kind) as error:
        got.extend(int(batch["samples"][0, 0]) for batch in iterate(loader(dataset, workers)))
    assert type(error.value) is kind
    assert "\n" not in str(error.value)
    assert error.value.__cause__ is None
    assert error.value.__context__ is None or error.value.__suppress_context__
    assert not set(multiprocessing.active_children()) - running
    return got, str(error.value)


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_start_methods_give_the_same(method, monkeypatch):
    context = multiprocessing.get_context(method)
    monkeypatch.setattr(multiprocessing, "get_context", lambda: context)
    dataset = Plain(5, size=LEAST_SHARED)
    ours, expected = (list(iterate(loader(dataset, workers))) for workers in (2, 0))
    assert len(ours) == len(expected) == 5
    for a, b in zip(ours, expected, strict=True):
        assert torch.equal(a["samples"], b["samples"])


@pytest.mark.parametrize("workers", [1, 2, 3, 7])
@pytest.mark.parametrize("length", [1, 2, 6])
def test_every_batch_comes_once_and_in_order(workers, length):
    assert first_values(iterate(loader(Plain(length), workers))) == list(range(length))


def test_an_iteration_that_is_left_ends_its_workers():
    running = set(multiprocessing.active_children())
    batches = iterate(loader(Plain()))
    next(batches)
    assert len(set(multiprocessing.active_children()) - running) == 2
    batches.close()
    assert not set(multiprocessing.active_children()) - running


@LINUX
def test_a_batch_of_many_tensors_costs_few_open_files():
    dataset, workers = Plain(20, size=LEAST_SHARED), 2
    gc.collect()  # of what other tests left
    before, most = len(os.listdir("/proc/self/fd")), 0
    for batch in iterate(eval_loader(dataset, [1.0] * 20, list, 4, workers)):
        assert len(batch) == 4  # tensors
        most = max(most, len(os.listdir("/proc/self/fd")))
    per_worker = 3 + AHEAD + 1  # a connection, two pipes to see its end; its batches
    assert most - before <= workers * per_worker + 1  # and the batch that is at hand
    del batch
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("workers", [1, 2])
def test_errors_that_are_not_ours_name_the_file(workers):
    got, message = loaded_before(Raising(KeyError("a\nb")), WorkerError, workers)
    assert got == [0, 1]
    assert message == (
        "images/2.png: cannot be loaded (KeyError: 'a\\nb'); set data.workers=0 for the traceback"
    )
    _, message = loaded_before(Raising(MemoryError()), WorkerError, workers)
    assert message.startswith("images/2.png: cannot be loaded (MemoryError); ")


def test_data_errors_arrive_as_they_are():
    got, message = loaded_before(Raising(DataError("x.jpg: broken; replace it")), DataError)
    assert got == [0, 1]
    assert message == "x.jpg: broken; replace it"


def test_a_batch_that_cannot_be_made_names_no_file():
    unusual = eval_loader(Unusual(4), [1.0] * 4, stack, 2, 1)
    with pytest.raises(WorkerError, match=r"^a batch: cannot be loaded \(RuntimeError: stack"):
        list(iterate(unusual))


@POSIX
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("SIGKILL", "was killed (SIGKILL), perhaps for lack of memory"),
        ("SIGALRM", "crashed (SIGALRM); set data.workers=0"),
    ],
)
def test_a_worker_that_dies(name, expected):
    got, message = loaded_before(Signalled(name), WorkerError)
    assert got == [0, 1]
    assert expected in message


def test_a_worker_that_exits():
    got, message = loaded_before(Exiting(), WorkerError)
    assert got == [0, 1]
    assert "ended with status 3" in message


@POSIX
@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        ("WORKER_TIMEOUT", "has loaded nothing for 5 s"),
        pytest.param("STOPPED_TIMEOUT", "was stopped (SIGSTOP)", marks=LINUX),
    ],
)
def test_a_worker_that_is_stopped(limit, expected, monkeypatch):
    monkeypatch.setattr(worker_pool, limit, 5)  # the first batches come before, on any machine
    got, message = loaded_before(Signalled("SIGSTOP"), WorkerError)
    assert got == [0, 1]
    assert expected in message


@LINUX
def test_a_worker_that_is_stopped_while_it_sends(monkeypatch):
    """Its thread waits for the rest of a batch that never comes."""

    def send_the_start(connection, batch):
        connection.send((b"", 10**6, False))
        os.kill(os.getpid(), signal.SIGSTOP)

    monkeypatch.setattr(worker_pool, "STOPPED_TIMEOUT", 1)
    monkeypatch.setattr(worker_pool, "send_batch", send_the_start)
    got, message = loaded_before(Plain(), WorkerError)
    assert got == []
    assert "was stopped (SIGSTOP)" in message


@POSIX
def test_signals_to_the_whole_group_leave_workers_alone():
    """The parent may need them until it has saved."""
    dataset = Signalled("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")
    assert first_values(iterate(loader(dataset))) == list(range(6))


class Interruption(BaseException):
    """What a handler raises."""


@POSIX
@pytest.mark.parametrize("when", ["start", "ask", "take", "join"])
def test_a_handler_that_raises_leaves_no_worker(when, monkeypatch):
    def interrupted(*arguments):
        original(*arguments)
        os.kill(os.getpid(), signal.SIGTERM)

    def interrupt(*_):
        raise Interruption

    original = getattr(worker_pool._Worker, when)
    monkeypatch.setattr(worker_pool._Worker, when, interrupted)
    running, handler = set(multiprocessing.active_children()), signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, interrupt)
    try:
        with pytest.raises(Interruption):
            list(iterate(loader(Plain())))
    finally:
        signal.signal(signal.SIGTERM, handler)
    for process in set(multiprocessing.active_children()) - running:
        process.join()  # it was killed, or ended by itself, a moment ago
        assert process.exitcode in (0, -signal.SIGKILL)


@POSIX
def test_signals_of_the_parent_are_as_before():
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    handler = signal.getsignal(signal.SIGTERM)
    list(iterate(loader(Plain())))
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before
    assert signal.getsignal(signal.SIGTERM) is handler
    assert signal.getsignal(signal.SIGCHLD) is signal.SIG_DFL  # none of ours may interrupt a step


def test_workers_that_cannot_be_started(monkeypatch):
    def pipe():
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(multiprocessing, "get_context", lambda: SimpleNamespace(Pipe=pipe))
    _, message = loaded_before(Plain(), WorkerError)
    assert message.startswith("2 loader processes cannot be started (Too many open files); ")
    assert "ulimit -n" in message
    assert "data.workers=0" in message


@POSIX
def test_workers_that_cannot_be_received_from(monkeypatch):
    def receive(*_, **__):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(worker_pool, "receive_batch", receive)
    got, message = loaded_before(Plain(), WorkerError)
    assert got == []
    assert "Too many open files" in message
    assert "ulimit -n" in message


ORPHANS = """
import multiprocessing, os, signal, sys
from data.loaders import iterate
from tests.helpers.odd_samples import Plain
from tests.test_worker_pool import loader
if __name__ == "__main__":
    multiprocessing.set_start_method(sys.argv[1])
    if sys.argv[2] == "pipe":
        del os.memfd_create
    batches = iterate(loader(Plain(50, size=10**6), workers=int(sys.argv[3])))
    next(batches)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@LINUX
@pytest.mark.parametrize(
    ("method", "way", "workers"),
    [("fork", "shared", 2), ("fork", "pipe", 2), ("forkserver", "shared", 1)],
)
def test_workers_end_with_their_parent(method, way, workers, tmp_path):
    """They hold the other end of its output, which is read to the end here; with `pipe`, they are
    writing to a connection that is full."""
    script = tmp_path / "orphans.py"
    script.write_text(ORPHANS)
    done = subprocess.run(
        [sys.executable, script, method, way, str(workers)],
        capture_output=True,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
