"""Find boxes for many image files, in batches, spread over processes or on one device.

How files are grouped and which process handles them changes only the speed. An image that cannot be
used is an outcome like any other; it stops nothing.

Legend: P proposals.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from data.errors import DataError
from data.images import AS_STORED, ImageReading, read_image
from data.proposals.propose import (
    CPU,
    Proposals,
    ProposalSettings,
    choose,
    propose_shrunk,
    shrink,
)
from data.selective_search.search import batch_pixels
from data.worker_process import end_with_parent

TIMEOUT = 600  # seconds without a finished chunk of images before the processes are given up
MAX_PIXELS = 2**25  # of a batch on a CPU, 100 MB after shrinking
CPU_BATCH, DEVICE_BATCH = 16, 256  # images of a batch; on a device, the pixels are the limit before


class FileState(NamedTuple):
    """What shows that a file has changed."""

    bytes: int
    mtime_ns: int  # of the last change, nanoseconds since 1970


@dataclass(frozen=True)
class Job:
    """One image to work on."""

    file: str  # relative to the folder of the images
    size: tuple[int, int] | None = None  # (height, width) that annotations state; None: any
    boxes: np.ndarray | None = None  # (P, 4) float32 xyxy, best first; None: search the image
    # P masks of these boxes, as in `Proposals`; b"" for a box without. None: no box has one.
    masks: Sequence[bytes] | None = None


@dataclass(frozen=True)
class Found:
    """The proposals of an image."""

    file: str
    state: FileState  # before the file was read
    height: int
    width: int
    boxes: np.ndarray  # (P, 4) float64 xyxy in pixels, best first, two decimals
    masks: Sequence[bytes] | None = None  # of the boxes, as in `Job`


@dataclass(frozen=True)
class Bad:
    """An image that cannot be used."""

    file: str
    reason: str  # a sentence that names the path


@dataclass(frozen=True)
class _Picture:
    job: Job
    state: FileState
    size: tuple[int, int]  # (height, width)
    pixels: Tensor | None  # (3, h, w) uint8, shrunk for the search; None if it has boxes


def file_state(path: Path) -> FileState:
    """State of a file; raises OSError if there is none."""
    status = path.stat()
    return FileState(status.st_size, status.st_mtime_ns)


def size_problem(path: Path, job: Job, size: tuple[int, int]) -> str | None:
    """Why an image of `size` (height, width) is not the one annotations describe, or None."""
    if job.size in (None, size):
        return None
    return (
        f"{path}: image has {size[1]} x {size[0]} pixels but is listed as "
        f"{job.size[1]} x {job.size[0]}; correct the annotations"
    )


def propose_files(
    directory: Path,
    jobs: Sequence[Job],
    settings: ProposalSettings,
    workers: int = 1,
    batch: int | None = None,
    reading: ImageReading = AS_STORED,
) -> Iterator[Found | Bad]:
    """Yield the outcome of every job on the CPU, in the order in which they finish.

    Args:
        directory: the jobs' files are relative to it.
        jobs: images to work on.
        settings: of the search, or of the choice among given boxes.
        workers: processes of one thread each; 1 works in this process.
        batch: images handled together, at most (16).
        reading: how the images are read.

    Raises:
        DataError: processes cannot be started; one was killed, usually for lack of memory, is
            stopped or stuck, or met an unknown error.
    """
    batch = batch or CPU_BATCH
    if workers > 1 and len(jobs) > 1:
        yield from _propose_in_processes(directory, jobs, settings, workers, batch, reading)
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the processes: the order of sums must not depend on it
    try:
        reads = (_read(directory, reading, settings, job) for job in jobs)
        yield from _propose_reads(reads, settings, batch, MAX_PIXELS, CPU)
    finally:
        torch.set_num_threads(threads)


def propose_files_on_device(
    directory: Path,
    jobs: Sequence[Job],
    settings: ProposalSettings,
    device: torch.device,
    threads: int = 1,
    batch: int | None = None,
    reading: ImageReading = AS_STORED,
) -> Iterator[Found | Bad]:
    """Yield the outcome of every job, in order: threads decode and shrink ahead, `device` searches
    as many images together as have the pixels that suit it, and at most `batch` (256).

    The boxes are those that `propose_files` finds.

    Raises:
        DataError: the memory of the device is too small for one image.
    """
    batch = batch or DEVICE_BATCH
    with ThreadPoolExecutor(threads) as pool:
        read = partial(_read, directory, reading, settings)
        reads = _read_ahead(pool, read, jobs, ahead=batch + threads)
        yield from _propose_reads(reads, settings, batch, batch_pixels(device), device)


def _read_ahead(
    pool: ThreadPoolExecutor,
    read_job: Callable[[Job], _Picture | Bad],
    jobs: Iterable[Job],
    ahead: int,
) -> Iterator[_Picture | Bad]:
    """Yield what `read_job` gives for each job, in order, with up to `ahead` images being read."""
    waiting = iter(jobs)
    running = deque(pool.submit(read_job, job) for job in islice(waiting, ahead))
    try:
        while running:
            read = running.popleft().result()
            running.extend(pool.submit(read_job, job) for job in islice(waiting, 1))
            yield read
    finally:  # if the caller gave up, images not yet begun need not be read
        for future in running:
            future.cancel()


def _propose_in_processes(
    directory: Path,
    jobs: Sequence[Job],
    settings: ProposalSettings,
    workers: int,
    batch: int,
    reading: ImageReading,
) -> Iterator[Found | Bad]:
    size = min(batch, -(-len(jobs) // workers))  # no process without work
    chunks = (jobs[i : i + size] for i in range(0, len(jobs), size))
    task = partial(_propose_chunk, directory, reading, settings, batch)
    with _process_pool(min(workers, len(jobs))) as pool:
        running = {pool.submit(task, chunk) for chunk in islice(chunks, 2 * workers)}
        while running:
            done, running = wait(running, TIMEOUT, FIRST_COMPLETED)
            if not done:
                raise DataError(
                    f"no process of --workers has finished an image for {TIMEOUT} s; look whether "
                    "one is stopped and whether the disk of the images answers, then run the "
                    "command again: finished images are kept"
                )
            running |= {pool.submit(task, chunk) for chunk in islice(chunks, len(done))}
            for future in done:
                yield from future.result()


@contextlib.contextmanager
def _process_pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """A pool of processes, none of which is left behind.

    Raises:
        DataError: see `propose_files`.
    """
    others = set(multiprocessing.active_children())
    pool = None
    try:
        pool = ProcessPoolExecutor(workers, _process_context(), _start_process)
        yield pool
        pool.shutdown()
    except BrokenProcessPool:
        raise DataError(
            "a process of --workers was killed, perhaps for lack of memory; run the command again "
            "with fewer --workers or a smaller --batch, finished images are kept"
        ) from None
    except OSError as error:
        raise DataError(
            f"processes of --workers cannot be started ({error.strerror}); raise the limit "
            "(`ulimit -n` for open files, `ulimit -u` for processes, --shm-size of a container "
            "for /dev/shm), or set --workers 1"
        ) from None
    finally:
        # Whatever stopped us: the pool itself would wait for processes that are stopped or stuck.
        for process in set(multiprocessing.active_children()) - others:
            process.kill()
        if pool is not None:
            pool.shutdown(cancel_futures=True)


def _process_context() -> multiprocessing.context.BaseContext:
    # Forking a process that has already run torch threads can hang: fork a fresh one, or none.
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    # Torch is imported once for all processes.
    multiprocessing.set_forkserver_preload(["data.proposals.workers"])
    return multiprocessing.get_context("forkserver")


def _start_process() -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C reaches all of them: one message will do
    end_with_parent()


def _propose_chunk(
    directory: Path,
    reading: ImageReading,
    settings: ProposalSettings,
    batch: int,
    jobs: Sequence[Job],
) -> list[Found | Bad]:
    reads = (_read(directory, reading, settings, job) for job in jobs)
    try:
        return list(_propose_reads(reads, settings, batch, MAX_PIXELS, CPU))
    except Exception as error:
        what = " ".join(f"{type(error).__name__}: {error}".split())
        raise DataError(
            f"{directory / jobs[0].file}: the search for boxes failed here or in the "
            f"{len(jobs) - 1} images after it ({what}); set --workers 1 for the traceback"
        ) from None


def _read(
    directory: Path, reading: ImageReading, settings: ProposalSettings, job: Job
) -> _Picture | Bad:
    path = directory / job.file
    try:
        state = file_state(path)  # first: a change while it is read shows at the next start
        pixels = np.array(read_image(path, reading))
    except DataError as error:
        return Bad(job.file, str(error))
    except OSError as error:
        return Bad(
            job.file,
            f"{path}: image is missing ({error.strerror}); restore it or remove its entry",
        )
    problem = size_problem(path, job, pixels.shape[:2])
    if problem:
        return Bad(job.file, problem)
    small = None
    if job.boxes is None:
        small = shrink(torch.from_numpy(pixels).permute(2, 0, 1), settings.search_side)
    return _Picture(job, state, pixels.shape[:2], small)


def _propose_reads(
    reads: Iterable[_Picture | Bad],
    settings: ProposalSettings,
    batch: int,
    pixels: int,
    device: torch.device,
) -> Iterator[Found | Bad]:
    """Collect pictures into batches of at most `batch` and, unless it is one, of at most `pixels`,
    and propose boxes for each; bad ones pass through at once."""
    pictures: list[_Picture] = []
    room = pixels
    for read in reads:
        if isinstance(read, Bad):
            yield read
            continue
        more = 0 if read.pixels is None else read.pixels[0].numel()
        if pictures and more > room:
            yield from _propose_pictures(pictures, settings, device)
            pictures, room = [], pixels
        pictures.append(read)
        room -= more
        if len(pictures) == batch:
            yield from _propose_pictures(pictures, settings, device)
            pictures, room = [], pixels
    if pictures:
        yield from _propose_pictures(pictures, settings, device)


def _propose_pictures(
    pictures: Sequence[_Picture], settings: ProposalSettings, device: torch.device
) -> list[Found]:
    if all(picture.job.boxes is not None for picture in pictures):
        return [_found(picture, _choose(picture, settings)) for picture in pictures]
    try:
        small, sizes = [p.pixels for p in pictures], [p.size for p in pictures]
        proposals = propose_shrunk(small, sizes, settings, device)
    except torch.OutOfMemoryError:
        if len(pictures) == 1:
            raise DataError(
                f"{pictures[0].job.file}: the memory of {device} is too small for the search; "
                "set a smaller --search-side, or --device cpu"
            ) from None
    else:
        return [_found(*pair) for pair in zip(pictures, proposals, strict=True)]
    half = len(pictures) // 2  # after `except`, where what did not fit is no longer referred to
    halves = (pictures[:half], pictures[half:])
    return [found for part in halves for found in _propose_pictures(part, settings, device)]


def _choose(picture: _Picture, settings: ProposalSettings) -> Proposals:
    """Apply the filter, NMS and the limit to the given boxes."""
    boxes, masks = torch.from_numpy(picture.job.boxes), picture.job.masks
    rows = choose(boxes, picture.size, settings)
    return Proposals(boxes[rows], None if masks is None else [masks[row] for row in rows.tolist()])


def _found(picture: _Picture, proposals: Proposals) -> Found:
    rounded = proposals.boxes.numpy().astype(float).round(2)
    return Found(picture.job.file, picture.state, *picture.size, rounded, proposals.masks)
