"""What a process that works for another one does first, however it was started.

It takes one core, leaves it to its parent to react to signals, and ends with its parent.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import torch

# Terminals, schedulers and torchrun send these to all processes of a run. The parent decides what
# becomes of the run, and may need its workers until it has saved.
FOR_THE_PARENT = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")
    if hasattr(signal, name)  # Windows has few of them
)


@contextlib.contextmanager
def signals_held() -> Iterator[None]:
    """Hold back the signals for the parent; around the start of a process or a thread, which
    inherits that.

    A process that is still starting would otherwise run its parent's handlers, or die.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, FOR_THE_PARENT)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def begin_work() -> None:
    """Call this first in every worker process."""
    for number in FOR_THE_PARENT:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, FOR_THE_PARENT)
    # Before anything else runs on several threads, which a forked process must not.
    torch.set_num_threads(1)
    end_with_parent()


def end_with_parent() -> None:
    """From now on, exit when the parent has ended, whatever this process waits for by then: a full
    or an empty queue would keep it alive for ever."""
    threading.Thread(target=_wait_for_the_end, daemon=True).start()


def is_stopped(process: int) -> bool:
    """Whether a process was stopped by a signal and not continued; False where /proc does not tell
    (it does on Linux)."""
    try:
        status = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] == "T"  # its name stands in parentheses


def _wait_for_the_end() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None  # this runs in a child only
    # Where processes are forked, their siblings too must have ended before `is_alive` shows it, and
    # one may be stopped. With a fork server, this process is no child of its parent.
    is_child = os.getppid() == parent.pid
    while parent.is_alive() and (os.getppid() == parent.pid or not is_child):
        parent.join(timeout=1)
    os._exit(1)
