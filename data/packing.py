"""A batch as two blocks of bytes: all of its tensors end to end, and the rest pickled.

The many tensors of a batch travel between processes as one block, and are views into it on the
other side: nothing is copied, whatever the number of boxes and images.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

ALIGNMENT = 64  # bytes; of every tensor in the block, as torch's own allocator has it
SMALL = 4096  # bytes


@dataclass(frozen=True)
class Packed:
    """A batch taken apart."""

    outline: bytes  # everything but the tensors' values; for `unpack`
    tensors: list[tuple[int, Tensor]]  # offset in the block, and what belongs there
    size: int  # bytes of the block

    def pieces(self) -> Iterator[tuple[int, memoryview]]:
        """Offset and bytes of each tensor that has any."""
        for offset, tensor in self.tensors:
            if tensor.numel():
                flat = tensor.detach().contiguous().view(-1).view(torch.uint8)
                yield offset, memoryview(flat.numpy())

    def block(self) -> bytearray:
        """The values of all tensors."""
        block = bytearray(self.size)
        for offset, piece in self.pieces():
            block[offset : offset + len(piece)] = piece
        return block


def pack(batch: Any) -> Packed:
    """Take a batch apart: dicts, lists, tuples and whatever else can be pickled, with CPU tensors
    anywhere in them."""
    file = io.BytesIO()
    packer = _Packer(file)
    packer.dump(batch)
    return Packed(file.getvalue(), packer.tensors, packer.size)


def unpack(outline: bytes, block: Tensor) -> Any:
    """Put a batch together again.

    Args:
        outline: of `pack`.
        block: (size,) uint8 with the tensors' values; large tensors are views into it. Small ones
            are copied unless it is pinned: who keeps one shall not keep the block.
    """
    return _Unpacker(io.BytesIO(outline), block).load()


class _Packer(pickle.Pickler):
    """Pickles all but the tensors, in whose place it puts offset, shape and type."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self.tensors: list[tuple[int, Tensor]] = []
        self.size = 0

    def persistent_id(self, item: Any) -> tuple[int, tuple[int, ...], torch.dtype] | None:
        if not isinstance(item, Tensor):
            return None
        offset = -(-self.size // ALIGNMENT) * ALIGNMENT
        self.tensors.append((offset, item))
        self.size = offset + item.numel() * item.element_size()
        return offset, tuple(item.shape), item.dtype


class _Unpacker(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, block: Tensor) -> None:
        super().__init__(file)
        self.block, self.keep_views = block, block.is_pinned()

    def persistent_load(self, place: tuple[int, tuple[int, ...], torch.dtype]) -> Tensor:
        offset, shape, dtype = place
        size = dtype.itemsize
        for length in shape:
            size *= length
        view = self.block[offset : offset + size].view(dtype).view(shape)
        return view.clone() if size <= SMALL and not self.keep_views else view
