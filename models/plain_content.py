"""Look through what a file of weights holds: nested containers with tensors and plain values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

MOST_ENTRIES = 1_000_000
DEEPEST = 50  # containers in containers
MOST_SHARED = 10  # times the size of the file, if tensors share numbers


def entries(content: Any, depth: int = 0) -> Iterator[tuple[int, Any, Any]]:
    """Every value in `content` in order: how deep it lies, its key or index, and itself.

    Containers come before what they hold. What is reached in two ways is listed twice, so a few
    containers that hold each other can be endless: see `check_plain`.
    """
    if isinstance(content, Mapping):
        inside = content.items()
    elif isinstance(content, (list, tuple)):
        inside = enumerate(content)
    else:
        return
    for key, value in inside:
        yield depth, key, value
        yield from entries(value, depth + 1)


def check_plain(content: Any, size: int) -> None:
    """Check that a file's content can be looked through, and holds ordinary tensors.

    Args:
        content: of the file.
        size: of the file in bytes.

    Raises:
        ValueError: containers hold each other, or a tensor is not dense, not on the CPU, or has
            fewer numbers than it claims.
    """
    total = 0
    for number, (depth, key, value) in enumerate(entries({"the file": content})):
        if depth > DEEPEST or number > MOST_ENTRIES:
            raise ValueError("its entries are nested without end")
        if isinstance(value, Tensor):
            check_tensor(key, value)
            total += value.nbytes
        if total > MOST_SHARED * size:
            raise ValueError("its tensors claim many times the numbers that it holds")


def check_tensor(name: Any, tensor: Tensor) -> None:
    """Check that a tensor holds its numbers itself, here, one by one.

    Raises:
        ValueError: it does not.
    """
    if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
        kind = f"{str(tensor.layout).removeprefix('torch.')}, {tensor.device.type}"
        raise ValueError(f"{name!s:.80} is not an ordinary tensor ({kind})")
    steps = zip(tensor.stride(), tensor.shape, strict=True)
    expanded = any(stride == 0 and size > 1 for stride, size in steps)
    if expanded or tensor.nbytes > tensor.untyped_storage().nbytes():
        raise ValueError(f"{name!s:.80} shows the same numbers several times")
