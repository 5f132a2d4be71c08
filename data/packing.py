"""A batch as two blocks of bytes: all of its tensors end to end, and the rest pickled.

The many tensors of a batch travel between processes as one block, and are views into it on the
other side: nothing is copied, whatever the number of boxes and images.
"""

from __future__ import annotations

import io
import math
import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

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


class Place(NamedTuple):
    """Where the values of a tensor are."""

    offset: int  # bytes into the block
    shape: tuple[int, ...]  # of the values in the order in which they lie there
    axes: tuple[int, ...]  # of the tensor, by their place in `shape`
    dtype: torch.dtype


class _Packer(pickle.Pickler):
    """Pickles all but the tensors, in whose place it puts a `Place`."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self.tensors: list[tuple[int, Tensor]] = []
        self.size = 0

    def persistent_id(self, item: Any) -> tuple[Any, ...] | None:
        if not isinstance(item, Tensor):
            return None
        offset = -(-self.size // ALIGNMENT) * ALIGNMENT
        order = _memory_order(item)
        self.tensors.append((offset, item.permute(order)))
        self.size = offset + item.numel() * item.element_size()
        shape, axes = (item.shape[axis] for axis in order), map(order.index, range(item.dim()))
        return tuple(Place(offset, tuple(shape), tuple(axes), item.dtype))


class _Unpacker(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, block: Tensor) -> None:
        super().__init__(file)
        self.block, self.keep_views = block, block.is_pinned()

    def persistent_load(self, place: tuple[Any, ...]) -> Tensor:
        offset, shape, axes, dtype = Place(*place)
        size = dtype.itemsize * math.prod(shape)
        view = self.block[offset : offset + size].view(dtype).view(shape).permute(axes)
        return view.clone() if size <= SMALL and not self.keep_views else view


def _memory_order(tensor: Tensor) -> list[int]:
    """The axes from the one with the longest strides on, if the values lie in this order without
    gaps, as those of channels-last images do: they need no copy then. Else all as they are."""
    axes = list(range(tensor.dim()))
    order = sorted(axes, key=tensor.stride, reverse=True)
    return order if tensor.permute(order).is_contiguous() else axes
