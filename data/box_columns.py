"""The annotations of a COCO file in columns, as they are read; then grouped by image and written.

Legend: B boxes, N images.
"""

from __future__ import annotations

import mmap
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import count
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.coco_ids import Id
from data.packed_coco import box_areas
from data.packed_file import PackedWriter

IN_MEMORY = 2**24  # bytes of a column; a longer one waits in a temporary file
ROWS = 2**19  # of a column that are looked at together
FIELDS = ("image_id", "category_id")


class Values(NamedTuple):
    """What is kept of some annotations."""

    image_ids: Sequence[Id]
    category_ids: Sequence[Id]
    xywh: np.ndarray  # (B, 4) float64
    crowd: np.ndarray  # (B,) bool
    areas: np.ndarray  # (B,) float64
    ids: np.ndarray | None  # (B,) int64; None: not all are whole numbers that int64 holds


class BoxColumns:
    """Annotations in columns.

    Args:
        scratch: folder for temporary files; None: the system's.
    """

    def __init__(self, scratch: str | Path | None = None) -> None:
        self.scratch = scratch
        column = partial(Column, scratch)
        self.xywh, self.areas = column(np.float64, 4), column(np.float64)
        self.crowd, self.ids = column(bool), column(np.int64)
        # Ids of images and categories are numbered in the order in which they occur.
        self.codes = {field: column(np.int32) for field in FIELDS}
        self._numbers = {field: defaultdict(partial(next, count())) for field in FIELDS}
        self.mended: Counter[str] = Counter()
        self.has_ids, self.in_turn, self.has_crowds, self.has_areas = True, True, False, False

    def __len__(self) -> int:
        return len(self.xywh)

    @property
    def references(self) -> dict[str, list[Id]]:
        """The different values of `image_id` and `category_id`; a code is a place among them."""
        return {field: list(numbers) for field, numbers in self._numbers.items()}

    def add(self, values: Values) -> None:
        """Take more annotations."""
        turn = np.arange(len(self), len(self) + len(values.xywh)) + 1
        self.has_ids &= values.ids is not None
        ids = turn if values.ids is None else values.ids
        self.in_turn &= np.array_equal(ids, turn)
        self.has_crowds |= bool(values.crowd.any())
        self.has_areas |= not np.array_equal(values.areas, box_areas(values.xywh))
        for field, given in zip(FIELDS, (values.image_ids, values.category_ids), strict=True):
            numbers = self._numbers[field]
            self.codes[field].add([numbers[value] for value in given])
        self.ids.add(ids)
        self.crowd.add(values.crowd)
        self.areas.add(values.areas)
        self.xywh.add(values.xywh)

    def first_row(self, field: str, codes: Sequence[int]) -> int:
        """The first annotation with one of these codes."""
        before = 0
        for block in self.codes[field].blocks():
            rows = np.isin(block, codes).nonzero()[0]
            if len(rows):
                return before + int(rows[0])
            before += len(block)
        raise ValueError("no annotation has them")

    def write(
        self, writer: PackedWriter, image_of: np.ndarray, label_of: np.ndarray, images: int
    ) -> dict[str, int]:
        """Write the annotations, grouped by image, in the order of the file within each.

        Args:
            writer: of the packed file.
            image_of: for each code of an image, its place.
            label_of: for each code of a category, its label.
            images: N.

        Returns:
            How many boxes repeat another's image, class and place: of `all` boxes, and of the
            `ordinary` ones, crowds left out.
        """
        self._number()
        codes = self.codes["image_id"].whole()
        image = image_of.astype(np.int32)[codes] if len(self) else np.zeros(0, np.int32)
        number = np.bincount(image, minlength=images)
        writer.add("starts", [np.concatenate([[0], number.cumsum()])])
        grouped = bool((image[1:] >= image[:-1]).all())
        order = None if grouped else image.argsort(kind="stable")
        repeated = self._repeated(image, label_of)
        del image
        writer.add_numbers("xywh", lambda: self.xywh.blocks(order))
        codes = self.codes["category_id"]
        writer.add_numbers("labels", lambda: (label_of[b] for b in codes.blocks(order)))
        if self.has_crowds:
            writer.add("crowd", self.crowd.blocks(order))
        if self.has_areas:
            writer.add_numbers("areas", lambda: self.areas.blocks(order))
        if not (self.in_turn and grouped):
            writer.add_numbers("box_ids", lambda: self.ids.blocks(order))
        return repeated

    def _number(self) -> None:
        """Number the annotations from 1 unless each has a whole number of its own."""
        if not self.has_ids or not (self.in_turn or _repeats(self.ids.whole().copy()) == 0):
            self.mended["annotation_ids"] += len(self)
            self.in_turn, self.ids = True, Column(self.scratch, np.int64)
            for start in range(0, len(self), ROWS):
                self.ids.add(np.arange(start, min(start + ROWS, len(self))) + 1)

    def _repeated(self, image: np.ndarray, label_of: np.ndarray) -> dict[str, int]:
        """See `write`. Boxes are compared by 64 bits made of all that belongs to them: that any two
        of 20 million different ones agree is less likely than 1 in 90,000."""
        bits, crowd, start = np.empty(len(self), np.uint64), np.empty(len(self), bool), 0
        labels = self.codes["category_id"].blocks()
        for xywh, codes, crowds in zip(
            self.xywh.blocks(), labels, self.crowd.blocks(), strict=True
        ):
            mine = slice(start, start + len(xywh))
            parts = [image[mine], label_of[codes], *(xywh + 0.0).view(np.int64).T]  # -0.0 is 0.0
            bits[mine], crowd[mine], start = _mix(parts), crowds, mine.stop
        ordinary = _repeats(bits[~crowd]) if self.has_crowds else None
        every = _repeats(bits)
        return {"all": every, "ordinary": every if ordinary is None else ordinary}


class Column:
    """Values of one kind that come a part at a time; many wait in a temporary file.

    Args:
        scratch: its folder; None: the system's.
        dtype: of the values.
        width: how many belong together; None: each is by itself.
    """

    def __init__(self, scratch: str | Path | None, dtype: type, width: int | None = None) -> None:
        self.dtype = np.dtype(dtype)
        self.shape = (-1,) if width is None else (-1, width)
        self.row = self.dtype.itemsize * (width or 1)  # bytes
        self.file = tempfile.SpooledTemporaryFile(IN_MEMORY, dir=scratch)  # noqa: SIM115
        self.rows = 0

    def __len__(self) -> int:
        return self.rows

    def add(self, values: Sequence[float] | np.ndarray) -> None:
        """Take more values, (B,) or (B, width)."""
        array = np.ascontiguousarray(values, self.dtype)
        self.file.write(array.tobytes())
        self.rows += len(array)

    def blocks(self, order: np.ndarray | None = None) -> Iterator[np.ndarray]:
        """The values in blocks, at least one.

        Args:
            order: (B,) int64 rows, in which they come; None: as they were added.
        """
        if order is not None:
            whole = self.whole()
            for start in range(0, max(1, self.rows), ROWS):
                yield whole[order[start : start + ROWS]]
            return
        self.file.seek(0)
        for start in range(0, max(1, self.rows), ROWS):
            size = min(ROWS, self.rows - start) * self.row
            yield np.frombuffer(self.file.read(size), self.dtype).reshape(self.shape)
        self.file.seek(0, 2)

    def whole(self) -> np.ndarray:
        """All values; those of a file are mapped."""
        self.file.seek(0)
        if self.rows * self.row <= IN_MEMORY:
            buffer = self.file.read()
        else:
            self.file.flush()
            buffer = mmap.mmap(self.file.fileno(), 0, access=mmap.ACCESS_READ)
        self.file.seek(0, 2)
        return np.frombuffer(buffer, self.dtype).reshape(self.shape)


def _mix(parts: Sequence[np.ndarray]) -> np.ndarray:
    """64 bits for each row that depend on all parts, (B,) int64 each."""
    bits = np.zeros(len(parts[0]), np.uint64)
    for part in parts:  # the multiplier and the shift of splitmix64
        bits = (bits ^ part.astype(np.uint64)) * np.uint64(0xBF58476D1CE4E5B9)
        bits ^= bits >> np.uint64(31)
    return bits


def _repeats(values: np.ndarray) -> int:
    """How many values occurred before; sorts them."""
    values.sort()
    return int((values[1:] == values[:-1]).sum())
