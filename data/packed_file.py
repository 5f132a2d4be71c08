"""Named arrays in one file that is memory-mapped: all processes of a machine share its pages.

    arrays end to end, each at a multiple of 64 bytes | outline (JSON) | tail (24 bytes)

The outline says of each array where it is, its shape, its type and its checksum, and holds what
else belongs to them. The tail tells such a file from any other one, and its outline's place.

Numbers are stored in the smallest type that holds all of them exactly, see `smallest`.
"""

from __future__ import annotations

import json
import mmap
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from data.errors import DataError
from data.regular_file import require_regular, unreadable

ALIGNMENT = 64  # bytes
TAIL = struct.Struct("<QI12s")  # length and checksum of the outline, the mark
MARK = b"AlignDet1\x89\r\n"
BLOCK = 2**20  # numbers that are looked at or converted at once
HUNDREDTHS = 100  # boxes with two decimals are whole numbers of hundredths


class PackedWriter:
    """Writes arrays to a binary file; `end` must come last."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.place = file, 0
        self.outline: dict[str, Any] = {}

    def add(self, name: str, blocks: Iterable[np.ndarray]) -> None:
        """Write an array that comes in blocks of one type, along its first axis."""
        self._fill()
        start, crc32, rows, last = self.place, 0, 0, None
        for last in blocks:
            content = memoryview(np.ascontiguousarray(last)).cast("B") if last.size else b""
            self.file.write(content)
            crc32 = zlib.crc32(content, crc32)
            self.place += len(content)
            rows += len(last)
        if last is None:
            raise ValueError(f"{name}: an array needs a block, if an empty one")
        self.outline[name] = {
            "start": start,
            "shape": [rows, *last.shape[1:]],
            "type": last.dtype.str,
            "crc32": crc32,
        }

    def add_numbers(self, name: str, blocks: Callable[[], Iterator[np.ndarray]]) -> None:
        """Write numbers in the smallest type that holds all of them exactly.

        Args:
            name: of the array.
            blocks: called twice for the same blocks, once to look at them.
        """
        chosen = smallest(blocks())
        self.add(name, (chosen.encode(block) for block in blocks()))
        self.outline[name]["divisor"] = chosen.divisor

    def end(self, content: Mapping[str, Any]) -> None:
        """Write the outline.

        Args:
            content: what else belongs to the arrays; it must be JSON.
        """
        self._fill()
        outline = json.dumps({"arrays": self.outline, "content": content}).encode()
        self.file.write(outline + TAIL.pack(len(outline), zlib.crc32(outline), MARK))

    def _fill(self) -> None:
        gap = -self.place % ALIGNMENT
        self.file.write(bytes(gap))
        self.place += gap


class Encoding:
    """How numbers are stored: times `divisor`, as `dtype`."""

    def __init__(self, dtype: np.dtype, divisor: int) -> None:
        self.dtype, self.divisor = dtype, divisor

    def encode(self, block: np.ndarray) -> np.ndarray:
        """Numbers as they are stored."""
        scaled = np.rint(block * self.divisor) if self.divisor > 1 else block
        return scaled.astype(self.dtype)


def smallest(blocks: Iterable[np.ndarray]) -> Encoding:
    """The smallest encoding of numbers, int64 or float64, that gives back each of them exactly.

    A decimal number with two places is the float64 next to a whole number of hundredths, divided by
    100; so it comes back from the whole number.
    """
    low, high = 0, 0
    divisors = {1, HUNDREDTHS}
    for block in blocks:
        if not block.size:
            continue
        if block.dtype.kind == "f":
            divisors = {d for d in divisors if np.array_equal(np.rint(block * d) / d, block)}
        low, high = min(low, block.min().item()), max(high, block.max().item())
    if not divisors:
        return Encoding(np.dtype(np.float64), 1)
    divisor = min(divisors)
    for kind in (np.uint8, np.int8, np.uint16, np.int16, np.int32):
        limits = np.iinfo(kind)
        if limits.min <= low * divisor and high * divisor < limits.max:  # rounding may add one
            return Encoding(np.dtype(kind), divisor)
    # float64 holds whole numbers up to 2^53 only, and so does not gain from a divisor here
    return Encoding(np.dtype(np.int64), 1) if divisor == 1 else Encoding(np.dtype(np.float64), 1)


def in_blocks(array: np.ndarray) -> Iterator[np.ndarray]:
    """An array in blocks along its first axis, at least one."""
    for start in range(0, max(1, len(array)), BLOCK):
        yield array[start : start + BLOCK]


class Packed:
    """The arrays of a file, or of bytes in memory. Sent to another process, a file is opened there
    instead.

    Args:
        source: path, or the bytes.
        check: compare the arrays with their checksums.

    Raises:
        DataError: the file is missing, is no such file, is cut off, or is damaged.
    """

    def __init__(self, source: str | Path | bytes, check: bool = True) -> None:
        self.source = source
        self.buffer = source if isinstance(source, bytes) else _mapped(source)
        self.tail = bytes(self.buffer[-TAIL.size :])
        outline = self._outline()
        self.content: dict[str, Any] = outline["content"]
        self._arrays: dict[str, dict[str, Any]] = outline["arrays"]
        for name in self._arrays if check else ():
            stored = self.stored(name)
            crc32 = 0
            for block in in_blocks(stored):
                crc32 = zlib.crc32(memoryview(block).cast("B") if block.size else b"", crc32)
            if crc32 != self._arrays[name]["crc32"]:
                raise self._damaged()

    def __contains__(self, name: str) -> bool:
        return name in self._arrays

    def length(self, name: str) -> int:
        """The length of an array."""
        return self._arrays[name]["shape"][0]

    def stored(self, name: str) -> np.ndarray:
        """An array as it is stored, read-only."""
        its = self._arrays[name]
        size = int(np.prod(its["shape"]))
        return np.frombuffer(self.buffer, its["type"], size, its["start"]).reshape(its["shape"])

    def numbers(self, name: str, rows: slice, dtype: type[np.number]) -> np.ndarray:
        """Rows of an array from `add_numbers`, in the type that its blocks had."""
        divisor = self._arrays[name]["divisor"]
        stored = self.stored(name)[rows]
        return (stored / divisor if divisor > 1 else stored).astype(dtype, copy=False)

    def forget(self) -> None:
        """Give back the memory of what was read; it is read from the file again when needed."""
        if isinstance(self.buffer, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
            self.buffer.madvise(mmap.MADV_DONTNEED)

    def __reduce__(self) -> tuple[Any, ...]:
        return _opened_again, (self.source, self.tail)

    def _outline(self) -> dict[str, Any]:
        length, crc32, mark = TAIL.unpack(self.tail) if len(self.tail) == TAIL.size else (0, 0, b"")
        if mark != MARK:
            raise DataError(f"{self._name()}: is no packed file, or is cut off; write it again")
        outline = bytes(self.buffer[len(self.buffer) - TAIL.size - length : -TAIL.size])
        if len(outline) != length or zlib.crc32(outline) != crc32:
            raise self._damaged()
        return json.loads(outline)

    def _damaged(self) -> DataError:
        return DataError(f"{self._name()}: is damaged; write it again")

    def _name(self) -> str:
        return "packed bytes" if isinstance(self.source, bytes) else str(self.source)


def is_packed(path: str | Path) -> bool:
    """Whether a file is a packed one, by its end; False for one that cannot be read."""
    try:
        with open(path, "rb") as file:
            file.seek(0, 2)
            file.seek(-min(TAIL.size, file.tell()), 2)
            return file.read().endswith(MARK)
    except OSError:
        return False


def _opened_again(source: str | Path | bytes, tail: bytes) -> Packed:
    """The same arrays in another process.

    Raises:
        DataError: the file was replaced meanwhile.
    """
    packed = Packed(source, check=False)
    if packed.tail != tail:
        raise DataError(f"{source}: was written anew while it was in use; start again")
    return packed


def _mapped(path: str | Path) -> mmap.mmap | bytes:
    require_regular(path)
    try:
        with open(path, "rb") as file:
            if not file.seek(0, 2):
                return b""
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; give the path of a packed file") from None
    except OSError as error:
        raise unreadable(path, error) from None
