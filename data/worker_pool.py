"""Processes that load batches ahead of training.

Batch i comes from worker i mod n, so the order does not depend on which of them is quicker. Every
worker goes through the same lists of keys, loads each n-th of them, and is told when there is room
for another. It has a connection of its own, and a thread in the training process receives from it;
the training process itself waits at a queue only. So no worker that is killed, stopped or stuck can
hold it up for longer than `WORKER_TIMEOUT`.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import multiprocessing
import os
import queue
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, NamedTuple, Protocol

import torch

from data.batch_channel import receive_batch, send_batch
from data.errors import DataError
from data.worker_process import begin_work, is_stopped, signals_held

AHEAD = 2  # batches that a worker loads before they are asked for
WORKER_TIMEOUT = 600  # seconds; a worker that takes longer for a batch is given up
STOPPED_TIMEOUT = 20  # seconds; a worker that is stopped (SIGSTOP) for longer is given up


class WorkerError(DataError):
    """A worker is lost, or met an error that is not about an input file."""


class Work(Protocol):
    """What the workers load: `data.loaders.Loader`."""

    dataset: Any  # indexed by keys
    batches: Iterable[list[Any]]  # keys, the same in every process
    collate: Callable[[list[Any]], Any]
    workers: int
    pin_memory: bool


class Loaded(NamedTuple):
    """A batch."""

    batch: Any


class Failed(NamedTuple):
    """Why there is no batch: an error to raise in the training process."""

    kind: type[DataError]
    message: str


class Ended(NamedTuple):
    """There are no more batches."""


class Lost(NamedTuple):
    """Why nothing more can be received."""

    reason: Exception


def load_in_processes(work: Work) -> Iterator[Any]:
    """Yield the batches in order.

    Raises:
        DataError: an input file cannot be used.
        WorkerError: a worker cannot be started, is killed or stopped, gives nothing for
            `WORKER_TIMEOUT` seconds, or meets another error.
    """
    workers: list[_Worker] = []
    end = partial(_end, workers, os.getpid())
    atexit.register(end)  # Python itself would wait for a stopped worker for ever
    try:
        _start(workers, work)
        for worker in itertools.cycle(workers):
            outcome = worker.take()
            if isinstance(outcome, Ended):
                return
            worker.ask()
            yield outcome.batch
    finally:
        end()
        atexit.unregister(end)


def _start(workers: list[_Worker], work: Work) -> None:
    try:
        for number in range(work.workers):
            workers.append(_Worker(work, number))
            workers[-1].start()  # when it is listed, as a signal's handler may raise anywhere
    except OSError as error:
        raise WorkerError(
            f"{work.workers} loader processes cannot be started ({error.strerror}); raise the "
            "limit (`ulimit -n` for open files, `ulimit -u` for processes), lower data.workers, or "
            "set data.workers=0 to load in the training process"
        ) from None
    # Not earlier: a process should not be forked while threads run.
    for worker in workers:
        worker.listen(work.pin_memory)


def _end(workers: list[_Worker], owner: int) -> None:
    """Kill all workers: they hold nothing worth keeping, and stopped ones obey no other signal."""
    if os.getpid() != owner:
        return  # a process that was forked meanwhile has a copy of the list
    for worker in workers:
        worker.kill()
    for worker in workers:
        worker.join()
    workers.clear()


class _Worker:
    """A worker as the training process sees it."""

    def __init__(self, work: Work, number: int) -> None:
        context = multiprocessing.get_context()
        self.connection, self.theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(work, number, self.theirs), daemon=True)
        self.received: queue.SimpleQueue[Loaded | Failed | Ended | Lost] = queue.SimpleQueue()
        self.thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the process, which holds the only other end of the connection then."""
        with signals_held(), self.theirs:
            self.process.start()

    def listen(self, pin: bool) -> None:
        """Receive from now on, and have the first batches loaded."""
        device = torch.cuda.current_device() if pin else None
        self.thread = threading.Thread(target=self._receive, args=(device,), daemon=True)
        with signals_held():  # for good: they are for the main thread
            self.thread.start()
        for _ in range(AHEAD):
            self.ask()

    def ask(self) -> None:
        """Tell the worker that there is room for another batch."""
        with contextlib.suppress(ConnectionError):  # it has ended; what it sent last says why
            self.connection.send(None)

    def take(self) -> Loaded | Ended:
        """Its next batch; what it raises see `load_in_processes`."""
        outcome = self._wait()
        if isinstance(outcome, Failed):
            raise outcome.kind(outcome.message)
        if isinstance(outcome, Lost):
            raise self._loss(outcome.reason)
        return outcome

    def kill(self) -> None:
        """End the process, if it has started."""
        if self.process.pid is not None:
            self.process.kill()

    def join(self) -> None:
        """Wait for the end of the process, and of the thread, which ends with the connection."""
        if self.process.pid is not None:
            self.process.join(timeout=5)
        if self.thread is not None:
            self.thread.join(timeout=5)
        self.connection.close()

    def _wait(self) -> Loaded | Failed | Ended | Lost:
        stopped = 0
        # Seconds are counted, as the clock goes on while a whole run is suspended.
        for _ in range(WORKER_TIMEOUT):
            with contextlib.suppress(queue.Empty):
                return self.received.get(timeout=1)
            stopped = stopped + 1 if is_stopped(self.process.pid) else 0
            if stopped == STOPPED_TIMEOUT:
                raise WorkerError(
                    f"loader process {self.process.pid} was stopped (SIGSTOP) and not continued "
                    f"for {stopped} s; find out what stops processes here, or set data.workers=0"
                )
        raise WorkerError(
            f"loader process {self.process.pid} has loaded nothing for {WORKER_TIMEOUT} s; look "
            "whether the disk of the images answers, or set data.workers=0"
        )

    def _receive(self, device: int | None) -> None:
        """Queue what the worker sends, until the connection ends; runs in a thread."""
        try:
            if device is not None:
                torch.cuda.set_device(device)
            while True:
                self.received.put(receive_batch(self.connection, pin=device is not None))
        except Exception as error:  # raised in the training process, where it is waited for
            self.received.put(Lost(error.with_traceback(None)))  # its frames would keep us alive

    def _loss(self, reason: Exception) -> WorkerError:
        if not isinstance(reason, (EOFError, ConnectionError)):
            return WorkerError(
                f"a batch cannot be received ({_one_line(reason)}); raise the limit of open files "
                "(`ulimit -n`), lower data.workers, or set data.workers=0"
            )
        self.process.join(timeout=5)
        code = self.process.exitcode
        if code is None or code >= 0:
            return WorkerError(
                f"a loader process ended with status {code}; its own message stands above, or "
                "set data.workers=0 to see it"
            )
        name = signal.Signals(-code).name
        if name == "SIGKILL":
            return WorkerError(
                "a loader process was killed (SIGKILL), perhaps for lack of memory; lower "
                "data.workers or data.batch_size, or set data.workers=0"
            )
        return WorkerError(
            f"a loader process crashed ({name}); set data.workers=0 to find the image or the "
            "library that did it"
        )


def _work(work: Work, number: int, connection: Connection) -> None:
    """Load each n-th batch from `number` on; runs in a worker."""
    begin_work()
    with contextlib.suppress(EOFError, ConnectionError):  # training has ended
        for keys in itertools.islice(work.batches, number, None, work.workers):
            connection.recv()  # there is room for another
            send_batch(connection, _load(work, keys))
        send_batch(connection, Ended())


def _load(work: Work, keys: list[Any]) -> Loaded | Failed:
    key = None
    try:
        samples = []
        for key in keys:
            samples.append(work.dataset[key])
        key = None  # from here on no single sample is to blame
        return Loaded(work.collate(samples))
    except DataError as error:
        return Failed(DataError, str(error))
    except Exception as error:
        what = "a batch" if key is None else _named(work.dataset, key)
        return Failed(
            WorkerError,
            f"{what}: cannot be loaded ({_one_line(error)}); set data.workers=0 for the traceback",
        )


def _named(dataset: Any, key: Any) -> str:
    """The file of a sample, if the dataset can tell."""
    return str(dataset.path(key.index)) if hasattr(dataset, "path") else f"sample {key}"


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split()).rstrip(": ")
