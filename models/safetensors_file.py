"""Read a safetensors file: a header in JSON, then the bytes of the tensors.

The layout (github.com/huggingface/safetensors, "Format"): 8 bytes with the length of the header,
little-endian; the header, which maps names to dtype, shape and the first and last byte; the data.
"""

from __future__ import annotations

import json
import math
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from models.weight_errors import DamagedFile

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
LENGTH_BYTES = 8  # before the header
LONGEST_HEADER = 100_000_000  # bytes; the format's own limit


def read_safetensors(path: str | PathLike[str]) -> dict[str, Tensor]:
    """The tensors of a file by name, on the CPU.

    Raises:
        DamagedFile: it is cut off or not of this format.
        OSError: it cannot be opened.
    """
    size = Path(path).stat().st_size
    with open(path, "rb") as file:
        try:
            header, start = read_header(file, size)
            entries = [parse_entry(name, entry) for name, entry in header.items()]
            check_places([entry[3:] for entry in entries], size - start)
        except (ValueError, RecursionError) as error:
            raise DamagedFile(
                f"{path}: not a complete safetensors file ({error}); download or save it again",
                str(error),
            ) from None
        return {
            name: read_tensor(file, dtype, shape, start + first, last - first)
            for name, dtype, shape, first, last in entries
        }


def is_safetensors(head: bytes) -> bool:
    """Whether a file that starts with `head` (at least 9 bytes) looks like one: its header, a JSON
    object, begins with a brace."""
    return head[LENGTH_BYTES : LENGTH_BYTES + 1] == b"{"


def read_header(file: BinaryIO, size: int) -> tuple[dict[str, Any], int]:
    """The entries of the tensors, and where their data starts; `size` is that of the file."""
    length = int.from_bytes(file.read(LENGTH_BYTES), "little")
    if size < LENGTH_BYTES or length > min(size - LENGTH_BYTES, LONGEST_HEADER):
        raise ValueError(f"its header is {length} bytes long, the file {size}")
    header = json.loads(file.read(length).decode("utf-8"))
    if not isinstance(header, dict):
        raise ValueError("its header is not an object")
    header.pop("__metadata__", None)
    return header, LENGTH_BYTES + length


def parse_entry(name: str, entry: dict[str, Any]) -> tuple[str, torch.dtype, list[int], int, int]:
    """Name, dtype, shape, first byte and the byte after the last, of one entry of the header."""
    try:
        kind, shape, (first, last) = entry["dtype"], entry["shape"], entry["data_offsets"]
        sound = isinstance(kind, str) and all(
            type(number) is int and number >= 0 for number in (*shape, first, last)
        )
    except (KeyError, TypeError, ValueError):
        sound = False
    if not sound:
        raise ValueError(f"the entry of {name} is malformed")
    if kind not in DTYPES:
        raise ValueError(f"{name} has the unknown dtype {kind}")
    if last - first != math.prod(shape) * DTYPES[kind].itemsize:
        raise ValueError(f"{name} has {last - first} bytes, which do not fit {kind} {shape}")
    return name, DTYPES[kind], shape, first, last


def check_places(places: list[tuple[int, int]], size: int) -> None:
    """Check that the tensors fill the data, `size` bytes, without overlaps and gaps."""
    end = 0
    for first, last in sorted(places):
        if first != end:
            raise ValueError(f"byte {min(first, end)} of its data belongs to two tensors or none")
        end = last
    if end != size:
        raise ValueError(f"its tensors take {end} bytes, but it holds {size}")


def read_tensor(
    file: BinaryIO, dtype: torch.dtype, shape: list[int], start: int, size: int
) -> Tensor:
    """The tensor whose `size` bytes begin at byte `start` of the file."""
    if size == 0:
        return torch.empty(shape, dtype=dtype)
    file.seek(start)
    # A buffer of its own: tensors in the file are not aligned to the size of their elements.
    return torch.frombuffer(bytearray(file.read(size)), dtype=dtype).reshape(shape)
