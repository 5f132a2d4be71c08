"""Start several processes at once and wait until all have ended well."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from typing import Any


def run_together(number: int, target: Callable[..., Any], *args: Any) -> None:
    """Run a function in some forked processes at the same time."""
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=target, args=args) for _ in range(number)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
