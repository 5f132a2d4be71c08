"""How a batch gets from a loader process to the training process.

Large batches lie in memory that both processes see, made by `memfd_create` (Linux): one open file
per batch. It belongs to no file system, so /dev/shm, which containers often limit to 64 MB, plays
no part in it. Small batches, and all batches where the system offers no such memory, go through the
connection itself.
"""

from __future__ import annotations

import mmap
import os
from multiprocessing import reduction
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor

from data.packing import Packed, pack, unpack

LEAST_SHARED = 2**16  # bytes; below, the way through the connection is quicker
CHUNK = 2**20  # bytes sent at once; Windows refuses more than 32 MB


def send_batch(connection: Connection, batch: Any) -> None:
    """Send a batch, or anything else that `data.packing.pack` takes, to the other end.

    Raises:
        OSError: the other end is closed.
    """
    packed = pack(batch)
    file = _in_memory(packed) if packed.size >= LEAST_SHARED else None
    connection.send((packed.outline, packed.size, file is not None))
    if file is not None:
        try:
            reduction.send_handle(connection, file, None)
        finally:
            os.close(file)
        return
    block = memoryview(packed.block())
    for start in range(0, packed.size, CHUNK):
        connection.send_bytes(block[start : start + CHUNK])


def receive_batch(connection: Connection, pin: bool = False) -> Any:
    """What `send_batch` sent.

    Args:
        connection: to wait at, for any time.
        pin: put the tensors into page-locked memory, from which a GPU fetches them by itself.

    Raises:
        EOFError: the other end is closed, and nothing is left to receive.
        OSError: this process has too many open files.
    """
    outline, size, shared = connection.recv()
    if shared:
        block = _mapped(reduction.recv_handle(connection), size)
    else:
        block = torch.empty(size, dtype=torch.uint8)
        for start in range(0, size, CHUNK):
            connection.recv_bytes_into(block.numpy(), start)
    return unpack(outline, block.pin_memory() if pin else block)


def _in_memory(packed: Packed) -> int | None:
    """An open file in memory that holds the block, or None if the system offers none."""
    if not hasattr(os, "memfd_create"):
        return None
    try:
        file = os.memfd_create("batch")
    except OSError:  # forbidden in this container, or too many open files: the slower way works
        return None
    try:
        for offset, piece in packed.pieces():
            _write(file, piece, offset)
        os.truncate(file, packed.size)  # tensors without values may be the last ones
    except OSError:  # the memory is limited for such files, and perhaps not for others
        os.close(file)
        return None
    return file


def _write(file: int, piece: memoryview, offset: int) -> None:
    while piece:
        written = os.pwrite(file, piece, offset)
        piece, offset = piece[written:], offset + written


def _mapped(file: int, size: int) -> Tensor:
    """The bytes of an open file in memory, which are given back with the last tensor on them."""
    try:
        return torch.frombuffer(mmap.mmap(file, size), dtype=torch.uint8)
    finally:
        os.close(file)
