"""What loading a pickle would call and how much it claims to hold, found without doing either.

Each function and class that the pickle names is replaced by a stand-in, which can be called and
filled like the thing itself, and does nothing.
"""

from __future__ import annotations

import pickle
import pickletools
from io import BytesIO
from typing import Any, NamedTuple

import torch

from models.weight_errors import MoreThanTensors

# All that files of weights need: beside these, only plain values and containers.
TENSORS = {
    "collections.OrderedDict",
    "collections.Counter",
    *(f"torch._utils._rebuild_{what}" for what in ("tensor", "tensor_v2", "tensor_v3")),
    *(f"torch._utils._rebuild_{what}" for what in ("parameter", "parameter_with_state")),
    *("torch.Size", "torch.device", "torch.serialization._get_layout"),
    *("builtins.set", "__builtin__.set", "builtins.complex", "__builtin__.complex"),
}


# Bytes per number of each kind of storage; an untyped one counts bytes.
STORAGES = {
    **{"UntypedStorage": 1, "BoolStorage": 1, "ByteStorage": 1, "CharStorage": 1},
    **{"ShortStorage": 2, "IntStorage": 4, "LongStorage": 8},
    **{"HalfStorage": 2, "BFloat16Storage": 2, "FloatStorage": 4, "DoubleStorage": 8},
    **{"ComplexFloatStorage": 8, "ComplexDoubleStorage": 16},
}


class Storage(NamedTuple):
    """The numbers of one tensor or more, as a pickle describes them."""

    key: str  # where they are in the file
    size: int  # bytes


class StandIn:
    """Takes the place of whatever a pickle calls; a subclass has the name of each."""

    def __new__(cls, *_: Any, **__: Any) -> StandIn:
        """An instance, whatever the arguments."""
        return object.__new__(cls)

    def ignore(self, *_: Any) -> None:
        """Take what an object would be filled with."""

    __setstate__ = __setitem__ = append = extend = add = ignore


class OutlineReader(pickle.Unpickler):
    """Reads a pickle with stand-ins; refuses names that are not in `allowed`."""

    def __init__(self, raw: BytesIO, allowed: frozenset[str]) -> None:
        super().__init__(raw, encoding="latin1")
        self.allowed = allowed
        self.storages: list[Storage] = []

    def find_class(self, module: str, name: str) -> type:
        """A stand-in of that name.

        Raises:
            MoreThanTensors: the name is not one of `allowed`.
        """
        full = f"{module}.{name}"
        if full not in self.allowed and not is_part_of_a_tensor(module, name):
            raise MoreThanTensors(full)
        return type(full, (StandIn,), {})

    def persistent_load(self, pid: Any) -> StandIn:
        """Note a storage: `("storage", kind, key, device, numbers, ...)`."""
        word, kind, key, _, numbers, *_ = pid
        if word != "storage" or type(numbers) is not int or numbers < 0:
            raise ValueError(f"a storage is described as {pid!r:.60}")
        size = STORAGES[kind.__name__.rpartition(".")[2]]
        self.storages.append(Storage(str(key), numbers * size))
        return StandIn()


def is_part_of_a_tensor(module: str, name: str) -> bool:
    """Whether a name is that of a dtype or of the numbers of one, such as `torch.FloatStorage`."""
    if module == "torch" and isinstance(vars(torch).get(name), torch.dtype):
        return True
    return module in ("torch", "torch.cuda", "torch.storage") and name in STORAGES


def outline(raw: BytesIO, allowed: frozenset[str] = frozenset()) -> list[Storage]:
    """The storages that a pickle refers to; `raw` stands at its start, and after it at its end.

    Args:
        raw: the pickle.
        allowed: names beside `TENSORS` that it may call.

    Raises:
        MoreThanTensors: it would call something else.
        Exception: it is damaged.
    """
    start = raw.tell()
    check_memo(raw)
    raw.seek(start)
    reader = OutlineReader(raw, allowed | TENSORS)
    reader.load()
    return reader.storages


def check_memo(raw: BytesIO) -> None:
    """Check that each opcode is complete and the numbers of remembered objects are in use.

    Python's unpickler makes room for as many as the largest number, be it 2^32; each takes at least
    a byte of the pickle.

    Raises:
        ValueError: they are not.
    """
    start = raw.tell()
    for opcode, argument, position in pickletools.genops(raw):
        if "PUT" in opcode.name and int(argument) > position - start:
            raise ValueError(f"byte {position} of its pickle is damaged")
