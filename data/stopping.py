"""Stop a program in order: Ctrl-C (SIGINT), SIGTERM, and SIGUSR1, which SLURM sends in advance.

A signal raises `Stopped` wherever the program is, except in a `held` block, which it must not cut
in two: there it only leaves a note, `requested()`. A second Ctrl-C does not wait for that.

Signals belong to the process, and so does the state of this module.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)
)
TOGETHER = 5.0  # seconds; the terminal and torchrun send one Ctrl-C each at about the same time

_holding = False
_noted = 0  # number of the first signal that came in a `held` block
_noted_at = 0.0


class Stopped(BaseException):
    """A signal asked the program to end; like a KeyboardInterrupt, `except Exception` lets it pass.

    Args:
        number: of the signal.
        state: what is kept, for the message, such as `saved 12 steps in runs/x/last.pt`.
    """

    def __init__(self, number: int, state: str = "") -> None:
        super().__init__(number, state)
        self.number, self.state = number, state

    def __str__(self) -> str:
        name = signal.Signals(self.number).name
        cause = "Ctrl-C" if name == "SIGINT" else name
        return f"stopped by {cause}" + (f"; {self.state}" if self.state else "")

    @property
    def status(self) -> int:
        """The exit status that shells give such a program."""
        return 128 + self.number


@contextlib.contextmanager
def signals() -> Iterator[None]:
    """Make the signals raise `Stopped` in the block; those that are ignored (nohup) stay ignored.

    Only the main thread of a program may set this up; in another one nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    old = {number: signal.getsignal(number) for number in SIGNALS}
    owner = os.getpid()

    def handle(number: int, frame: FrameType | None) -> None:
        if os.getpid() == owner:
            _note_or_raise(number)
        else:  # a forked child ends as if there were no handler
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    for number in SIGNALS:
        if old[number] is not signal.SIG_IGN:
            signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Signals only leave a note in the block; at its end, one that nobody asked for is raised."""
    global _holding, _noted
    before, _holding = _holding, True
    try:
        yield
        if _noted and not before:
            raise Stopped(_noted)
    finally:
        _holding = before
        if not before:
            _noted = 0


@contextlib.contextmanager
def released() -> Iterator[None]:
    """Signals raise `Stopped` in the block, inside a `held` one too; so does one noted before."""
    global _holding
    before, _holding = _holding, False
    try:
        if _noted:
            raise Stopped(_noted)
        yield
    finally:
        _holding = before


def requested() -> int:
    """The number of the signal that came in the present `held` block; 0 if none did."""
    return _noted


def _note_or_raise(number: int) -> None:
    global _noted, _noted_at
    now = time.monotonic()
    impatient = _noted and number == signal.SIGINT and now - _noted_at > TOGETHER
    if not _holding or impatient:
        raise Stopped(number)
    if not _noted:
        _noted, _noted_at = number, now
