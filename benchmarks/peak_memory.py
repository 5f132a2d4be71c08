"""Peak resident memory of a block of code, for the benchmarks here (Linux)."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path


class PeakMemory:
    """`with PeakMemory() as peak: ...`, then `peak.bytes` is the rise since the block's start.

    Measure in a fresh process: memory that earlier code gave back to the allocator but not to the
    system would hide what the block uses.
    """

    bytes: int
    seconds: float

    def __enter__(self) -> PeakMemory:
        self._highest = self._before = resident()
        self._done = threading.Event()
        self._watcher = threading.Thread(target=self._watch)
        self._watcher.start()
        self._start = time.perf_counter()
        return self

    def _watch(self) -> None:
        while not self._done.is_set():
            self._highest = max(self._highest, resident())
            time.sleep(0.0005)

    def __exit__(self, *_: object) -> None:
        self.seconds = time.perf_counter() - self._start
        self._done.set()
        self._watcher.join()
        self.bytes = max(self._highest, resident()) - self._before


def resident() -> int:
    """Resident memory of this process in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
