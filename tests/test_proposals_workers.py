"""Batches, processes and a device change only the speed, and hold a bounded number of images."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import data.proposals.workers
from data.errors import DataError
from data.images import ImageReading
from data.proposals.propose import CPU, ProposalSettings, propose_shrunk
from data.proposals.workers import Bad, Job, propose_files, propose_files_on_device
from tests.helpers.cuda_rounding import CudaRounding
from tests.helpers.proposal_command import save_all_kinds, spoil, three_images


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return three_images(tmp_path / "images")


def test_a_device_gives_what_processes_give(folder: Path) -> None:
    save_all_kinds(folder)
    spoil(folder / "b.png")
    jobs = [Job(path.relative_to(folder).as_posix()) for path in sorted(folder.rglob("*.png"))]
    settings = ProposalSettings(max_boxes=9)
    expected = {outcome.file: outcome for outcome in propose_files(folder, jobs, settings)}
    device = torch.device("cpu")
    for threads, batch in ((1, 1), (3, 2), (2, 16)):
        found = list(propose_files_on_device(folder, jobs, settings, device, threads, batch))
        assert sorted(outcome.file for outcome in found) == sorted(expected)
        for outcome in found:
            same = expected[outcome.file]
            if isinstance(outcome, Bad):
                assert outcome == same
                assert outcome.file == "b.png"
                continue
            assert (outcome.state, outcome.height) == (same.state, same.height)
            assert np.array_equal(outcome.boxes, same.boxes)


@pytest.mark.parametrize("workers", [1, 2])
def test_images_are_read_as_told(tmp_path: Path, workers: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # on its side
    for name in ("a.png", "b.png"):
        Image.new("RGB", (80, 60)).save(tmp_path / name, exif=exif)
    jobs, turned = [Job("a.png"), Job("b.png")], ImageReading(exif="apply")
    settings = ProposalSettings()
    for reading, size in ((ImageReading(), (60, 80)), (turned, (80, 60))):
        found = propose_files(tmp_path, jobs, settings, workers, 1, reading)
        assert [(outcome.height, outcome.width) for outcome in found] == [size, size]
    device = torch.device("cpu")
    found = propose_files_on_device(tmp_path, jobs, settings, device, workers, 1, turned)
    assert [(outcome.height, outcome.width) for outcome in found] == [(80, 60)] * 2


def test_reading_ahead_is_bounded_and_ends_early(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []
    original = data.proposals.workers.read_image
    monkeypatch.setattr(
        data.proposals.workers,
        "read_image",
        lambda path, reading: read.append(path) or original(path, reading),
    )
    jobs = [Job("a.png")] * 50
    outcomes = propose_files_on_device(
        folder, jobs, ProposalSettings(), torch.device("cpu"), threads=2, batch=3
    )
    next(outcomes)
    outcomes.close()
    assert 3 <= len(read) <= 3 + 3 + 2  # a batch, and at most batch + threads ahead


def test_large_images_make_smaller_batches(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []

    def counting(images: list[torch.Tensor], *more: Any) -> list[torch.Tensor]:
        sizes.append(len(images))
        return propose_shrunk(images, *more)

    monkeypatch.setattr(data.proposals.workers, "propose_shrunk", counting)
    jobs = [Job("a.png")] * 5
    for pixels, expected in ((10**9, [4, 1]), (2 * 60 * 80, [2, 2, 1]), (1, [1] * 5)):
        monkeypatch.setattr(data.proposals.workers, "MAX_PIXELS", pixels)
        monkeypatch.setattr(data.proposals.workers, "batch_pixels", lambda _, p=pixels: p)
        for search in (propose_files, partial(propose_files_on_device, device=CPU)):
            sizes.clear()
            found = search(folder, jobs, settings=ProposalSettings(), batch=4)
            assert len(list(found)) == 5
            assert sizes == expected
    # After shrinking, images of 80 x 60 have 40 x 30 pixels.
    monkeypatch.setattr(data.proposals.workers, "batch_pixels", lambda _: 3 * 40 * 30)
    sizes.clear()
    list(propose_files_on_device(folder, jobs, ProposalSettings(search_side=40), CPU))
    assert sizes == [3, 2]


def test_a_device_searches_with_its_rounding_what_threads_have_shrunk(folder: Path) -> None:
    """The stand-in sees this thread only, where it refuses to resize."""
    jobs = [Job(file) for file in ("a.png", "b.png", "sub/c.png")]
    settings = ProposalSettings(search_side=64, box_filter=None, nms_iou=1)
    expected = list(propose_files(folder, jobs, settings))
    with CudaRounding():
        found = list(propose_files_on_device(folder, jobs, settings, CPU, threads=2))
    for one, other in zip(found, expected, strict=True):
        assert np.array_equal(one.boxes, other.boxes)
    assert sum(len(one.boxes) for one in found) > 100


def test_a_batch_that_does_not_fit_is_halved(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def limited(images: list[torch.Tensor], *more: Any) -> list[torch.Tensor]:
        tried.append(len(images))
        if len(images) > most:
            raise torch.OutOfMemoryError
        return propose_shrunk(images, *more)

    monkeypatch.setattr(data.proposals.workers, "propose_shrunk", limited)
    jobs = [Job(file) for file in ("a.png", "b.png", "sub/c.png")] * 2
    most = 2
    found = list(propose_files_on_device(folder, jobs, ProposalSettings(), CPU))
    assert [outcome.file for outcome in found] == [job.file for job in jobs]
    assert tried == [6, 3, 1, 2, 3, 1, 2]
    most = 0
    with pytest.raises(DataError, match="a.png: the memory of cpu is too small"):
        list(propose_files_on_device(folder, jobs, ProposalSettings(), CPU))


@pytest.fixture
def searched_by(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """A function that searches by a given function in two processes, and gives the error."""
    forked = multiprocessing.get_context("fork")  # others would not see the function
    monkeypatch.setattr(data.proposals.workers, "_process_context", lambda: forked)

    def search(function: Callable[..., list[torch.Tensor]]) -> str:
        monkeypatch.setattr(data.proposals.workers, "propose_shrunk", function)
        before = set(multiprocessing.active_children())
        with pytest.raises(DataError) as error:
            list(propose_files(folder, [Job("a.png")] * 4, ProposalSettings(), workers=2))
        assert not set(multiprocessing.active_children()) - before
        assert "\n" not in str(error.value)
        return str(error.value)

    return search


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork")
def test_lost_processes_are_one_line(
    searched_by: Callable[..., str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> list[torch.Tensor]:
        raise KeyError("a\nbug")

    def die(*_: object) -> list[torch.Tensor]:
        os.kill(os.getpid(), signal.SIGKILL)
        return []

    def stop(*_: object) -> list[torch.Tensor]:
        os.kill(os.getpid(), signal.SIGSTOP)
        return []

    message = searched_by(fail)
    assert message.startswith(f"{folder / 'a.png'}: the search for boxes failed here or in the 1 ")
    assert "(KeyError: " in message
    assert "was killed, perhaps for lack of memory" in searched_by(die)
    monkeypatch.setattr(data.proposals.workers, "TIMEOUT", 1)
    assert "no process of --workers has finished an image for 1 s" in searched_by(stop)


def test_processes_that_cannot_be_started(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_semaphores(*_: object) -> None:
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(data.proposals.workers, "ProcessPoolExecutor", no_semaphores)
    with pytest.raises(DataError, match="cannot be started .* --shm-size .* --workers 1"):
        list(propose_files(folder, [Job("a.png")] * 4, ProposalSettings(), workers=2))
