"""Batches arrive whole, through shared memory or the connection, and leave no open file."""

from __future__ import annotations

import errno
import gc
import os
import sys
from multiprocessing import Pipe
from threading import Thread

import pytest
import torch

from data.batch_channel import CHUNK, LEAST_SHARED, receive_batch, send_batch

LARGE = CHUNK + 100  # float32 numbers: more than four chunks
LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs memfd_create")


def sent(batch):
    """The batch as the other end gets it."""
    here, there = Pipe()
    with here, there:
        sender = Thread(target=send_batch, args=(there, batch))
        sender.start()
        result = receive_batch(here)
        sender.join()
        assert not here.poll()
    return result


def refused(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture(params=["shared", "no such call", "no file", "no memory"])
def way(request, monkeypatch):
    """The ways that a batch may have to take."""
    if request.param == "no such call":
        monkeypatch.delattr(os, "memfd_create", raising=False)
    elif request.param == "no file":
        monkeypatch.setattr(os, "memfd_create", refused, raising=False)
    elif request.param == "no memory":
        monkeypatch.setattr(os, "pwrite", refused, raising=False)
    return request.param


def open_files():
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("length", [0, 1, 10, LEAST_SHARED // 4, LARGE])
def test_batches_arrive(way, length):
    batch = {
        "images": torch.arange(length, dtype=torch.float32),
        "boxes": [torch.rand(n, 4) for n in (0, 3)],
        "ids": [5, "a"],
        "last": torch.zeros(0, 4),
    }
    ours = sent(batch)
    assert list(ours) == list(batch)
    assert torch.equal(ours["images"], batch["images"])
    assert all(torch.equal(a, b) for a, b in zip(ours["boxes"], batch["boxes"], strict=True))
    assert ours["ids"] == batch["ids"]
    assert ours["last"].shape == (0, 4)
    ours["images"] += 1  # they are ours to change


def test_what_is_no_batch_arrives(way):
    assert sent(None) is None
    assert sent(("x", 3)) == ("x", 3)


@LINUX
def test_a_batch_costs_one_open_file_while_it_lives():
    before = open_files()
    kept = [sent([torch.rand(LEAST_SHARED) for _ in range(50)]) for _ in range(3)]
    assert open_files() == before + 3
    small = [sent([torch.rand(10) for _ in range(50)]) for _ in range(3)]
    assert open_files() == before + 3
    assert len(small) == len(kept)
    del kept
    gc.collect()
    assert open_files() == before


@LINUX
def test_nothing_lies_in_dev_shm(monkeypatch):
    """A container's default of 64 MB is too small for a few batches."""
    monkeypatch.setattr(torch.UntypedStorage, "_share_fd_cpu_", refused)
    monkeypatch.setattr(torch.UntypedStorage, "_share_filename_cpu_", refused)
    before = os.statvfs("/dev/shm").f_bavail if os.path.exists("/dev/shm") else 0
    kept = sent(torch.zeros(LARGE))
    assert torch.equal(kept, torch.zeros(LARGE))
    assert before == (os.statvfs("/dev/shm").f_bavail if os.path.exists("/dev/shm") else 0)


@LINUX
def test_files_are_closed_where_memory_is_short(monkeypatch):
    monkeypatch.setattr(os, "pwrite", refused)
    before = open_files()
    assert torch.equal(sent(torch.ones(LARGE)), torch.ones(LARGE))
    assert open_files() == before


def test_the_other_end_is_closed():
    here, there = Pipe()
    there.close()
    with pytest.raises(EOFError):
        receive_batch(here)
    with pytest.raises(OSError, match="Broken pipe|closed"):
        send_batch(here, torch.zeros(10))
    here.close()
