"""A checksum of what a file of weights holds, which the file itself carries.

It covers names, shapes, dtypes and all numbers, whatever the format of the file. CRC-32 finds
damage, not malice; it is several times as fast as a cryptographic digest.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from models.plain_content import entries

KEY = "checksum"
FORM = "crc32 of all entries: "


def with_checksum(content: Mapping[str, Any]) -> dict[str, Any]:
    """`content` and, as its last entry, the checksum of the others."""
    rest = {key: value for key, value in content.items() if key != KEY}
    return {**rest, KEY: checksum(rest)}


def check_checksum(content: Any) -> None:
    """Compare a file's content with the checksum in it, if it has one.

    Raises:
        ValueError: they differ.
    """
    if not isinstance(content, Mapping) or not str(content.get(KEY)).startswith(FORM):
        return
    if with_checksum(content)[KEY] != content[KEY]:
        raise ValueError(
            "its checksum is wrong; if its entries were changed on purpose, remove the entry "
            f"{KEY!r}"
        )


def checksum(content: Mapping[str, Any]) -> str:
    """A text that depends on every key and value in `content`, at any depth, and their order."""
    crc = 0
    for depth, key, value in entries(content):
        crc = zlib.crc32(f"{depth} {key!r} {description(value)}".encode("utf-8", "replace"), crc)
        if isinstance(value, Tensor):
            crc = zlib.crc32(bytes_of(value), crc)
    return f"{FORM}{crc:08x}"


def description(value: Any) -> str:
    """What a checksum takes of a value beside a tensor's numbers."""
    if isinstance(value, Tensor):
        return f"{value.dtype} {tuple(value.shape)}"
    if isinstance(value, Mapping):
        return "mapping"
    return type(value).__name__ if isinstance(value, (list, tuple)) else repr(value)


def bytes_of(tensor: Tensor) -> memoryview:
    """The numbers of a tensor as bytes in row-major order."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy())
