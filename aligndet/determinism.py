"""Deterministic algorithms, where PyTorch has some, and the names of those that are not."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from aligndet import dist

# What PyTorch warns of each operation without a deterministic algorithm.
NOT_DETERMINISTIC = re.compile(r"(\S+) does not have a deterministic implementation")
WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"  # without it, cuBLAS may sum in another order each time


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """While it is open, runs on the same machine give the same bits where PyTorch can do so; at the
    end, one line names the operations that it cannot do so on this device.

    Enter it before anything is computed on a GPU.

    Args:
        wanted: False does nothing.
    """
    if not wanted:
        yield
        return
    found: dict[str, None] = {}  # in the order of their first use
    with _settings(), warnings.catch_warnings():
        warnings.filterwarnings("default", message=f".*{NOT_DETERMINISTIC.pattern}")
        show = warnings.showwarning

        def collect(message: Warning | str, *args: Any, **kwargs: Any) -> None:
            match = NOT_DETERMINISTIC.search(str(message))
            if match:
                found[match[1]] = None
            else:
                show(message, *args, **kwargs)

        warnings.showwarning = collect
        try:
            yield
        finally:
            if dist.is_main():
                print(sentence(list(found)))


def sentence(operations: list[str]) -> str:
    """What to say about the operations that were met and are not deterministic."""
    if not operations:
        return "deterministic: every operation that was used is"
    return (
        f"deterministic: not on this device: {', '.join(operations)}; runs that use them differ "
        "in the last bits"
    )


@contextmanager
def _settings() -> Iterator[None]:
    """PyTorch's settings, put back at the end."""
    cudnn, chosen = torch.backends.cudnn, os.environ.get(WORKSPACE)
    before = cudnn.deterministic, cudnn.benchmark
    algorithms = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    os.environ.setdefault(WORKSPACE, ":4096:8")
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(algorithms, warn_only=warn_only)
        cudnn.deterministic, cudnn.benchmark = before
        if chosen is None:
            del os.environ[WORKSPACE]
