"""The masks of a COCO file, in the order of its boxes: read only by those who ask for them.

They lie in a file of their own beside the packed boxes (`data/packed_coco.py`), so that a detector
without masks pays nothing for them. A packed file of proposals holds them itself.
"""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from data.box_columns import IN_MEMORY, Column
from data.coco_file import kept
from data.coco_ids import ListedIds
from data.coco_json import name_of
from data.coco_packing import read_coco_parts, without_collection
from data.errors import DataError
from data.json_files import LARGE_FILE
from data.masks import encode, flat_polygons
from data.packed_coco import PackedCoco
from data.packed_file import Packed, PackedWriter

SUFFIX = ".masks.packed"
VERSION = 1
LETTERS, ENDS = "mask_letters", "mask_ends"
ROWS = 2**14  # masks that are written together


class CocoMasks:
    """Masks as RLE, see `data.masks`.

    Args:
        packed: from `pack_masks`, or a file of proposals with masks.

    Raises:
        DataError: it was made by another version.
    """

    def __init__(self, packed: Packed) -> None:
        if packed.content.get("masks") != VERSION:
            raise DataError(
                f"{packed.source}: its masks were packed by another version of this project; "
                "write it again"
            )
        self.packed = packed
        # Polygons with fewer than three corners: how many, and the first annotation with one.
        self.flat, self.first_flat = packed.content.get("flat", (0, ""))
        self.letters, self.ends = packed.stored(LETTERS), packed.stored(ENDS)

    def __reduce__(self) -> tuple[Any, ...]:
        return CocoMasks, (self.packed,)

    def __len__(self) -> int:
        return len(self.ends)

    def rle(self, row: int) -> bytes:
        """The mask of a box, by its place among those of all images."""
        start = self.ends[row - 1] if row else 0
        return self.letters[start : self.ends[row]].tobytes()

    def lengths(self, rows: np.ndarray) -> np.ndarray:
        """(B,) int64, letters of the masks of boxes; 0: there is no mask."""
        return self.ends[rows] - np.where(rows > 0, self.ends[rows - 1], 0)

    def joined(self, rows: np.ndarray) -> Iterator[np.ndarray]:
        """The masks of boxes one after the other, rows ascending, as many at once as lie so."""
        for run in np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1):
            if len(run):
                start = self.ends[run[0] - 1] if run[0] else 0
                yield self.letters[start : self.ends[run[-1]]]


def open_masks(path: str | Path, coco: PackedCoco, bad_boxes: str = "drop") -> CocoMasks:
    """The masks of a COCO file.

    Args:
        path: of the file.
        coco: its boxes, from `data.coco_file.open_coco`.
        bad_boxes: what to do with polygons that, like boxes without area, hold nothing: `error`
            names the first annotation with one, `drop` leaves them out.

    Raises:
        DataError: a `segmentation` cannot be used, an image that has some is listed without its
            size, or a packed file has none.
    """
    masks = _opened(path, coco)
    if masks.flat and bad_boxes == "error":
        raise DataError(
            f"{path}: {masks.first_flat}: its segmentation has a polygon of fewer than three "
            "points; correct it, or set data.bad_boxes=drop to leave such polygons out"
        )
    return masks


def _opened(path: str | Path, coco: PackedCoco) -> CocoMasks:
    if ENDS in coco.packed:
        return CocoMasks(coco.packed)
    if coco.packed.content["source"] is None and not isinstance(coco.packed.source, bytes):
        raise DataError(f"{path}: was packed without masks; write it again with --masks")
    if os.path.getsize(path) >= LARGE_FILE:
        return kept(path, SUFFIX, lambda *args: pack_masks(path, coco, *args), CocoMasks)
    file = io.BytesIO()
    pack_masks(path, coco, file)
    return CocoMasks(Packed(file.getvalue(), check=False))


def add_masks(content: dict[str, Any], masks: CocoMasks) -> None:
    """Give the annotations of a file, from `PackedCoco.as_dict`, their masks as `segmentation`."""
    sizes = {entry["id"]: [entry["height"], entry["width"]] for entry in content["images"]}
    for row, entry in enumerate(content["annotations"]):
        if counts := masks.rle(row):
            entry["segmentation"] = {"size": sizes[entry["image_id"]], "counts": counts}


def pack_masks(
    path: str | Path,
    coco: PackedCoco,
    file: IO[bytes],
    scratch: str | Path | None = None,
    source: dict[str, Any] | None = None,
) -> None:
    """Write the masks of a COCO JSON in the order of its boxes.

    Args:
        path: of the JSON.
        coco: its boxes.
        file: to write to.
        scratch: folder for temporary files, as large as the masks; None: the system's.
        source: what to remember of the JSON.

    Raises:
        DataError: see `open_masks`.
    """
    images = _Images(path, coco)
    columns = MaskColumns(scratch)
    with without_collection():
        for key, value, first in read_coco_parts(path, ("annotations",)):
            if key == "annotations":
                if first:
                    columns = MaskColumns(scratch)
                for entry in value:
                    place = images.place(entry["image_id"])
                    columns.add(place, images.encode(place, entry))
    writer = PackedWriter(file)
    flat = (images.flat, images.first_flat)
    writer.end({**columns.write(writer), "source": source, "flat": flat})


class _Images:
    """The images that annotations refer to."""

    def __init__(self, path: str | Path, coco: PackedCoco) -> None:
        self.path, self.sizes = path, coco.sizes.tolist()
        ids = [coco.image_id(place) for place in range(len(coco))]
        self.listed = ListedIds(ids)
        self.places = {image_id: place for place, image_id in enumerate(ids)}
        self.found: dict[Any, int] = {}  # by the reference as the file writes it
        self.flat, self.first_flat = 0, ""  # see `CocoMasks`

    def place(self, reference: Any) -> int:
        key = (type(reference), reference)
        if key not in self.found:
            self.found[key] = self.places[self.listed.find(reference)]
        return self.found[key]

    def encode(self, place: int, entry: dict[str, Any]) -> bytes:
        """The mask of an annotation."""
        segmentation = entry.get("segmentation")
        if not segmentation:
            return b""
        height, width = self.sizes[place]
        try:
            if not (height and width):
                raise ValueError("needs the 'height' and 'width' of its image, which are not given")
            counts = encode(segmentation, height, width)
        except ValueError as error:
            raise DataError(
                f"{self.path}: {name_of(entry)}: its segmentation {error}; correct it, or remove "
                "it to leave the object without a mask"
            ) from None
        flat = flat_polygons(segmentation)
        if flat and not self.flat:
            self.first_flat = name_of(entry)
        self.flat += flat
        return counts


class MaskColumns:
    """Masks as they come, written in the order of the images.

    Args:
        scratch: folder for temporary files; None: the system's.
    """

    def __init__(self, scratch: str | Path | None = None) -> None:
        self.images, self.ends = Column(scratch, np.int32), Column(scratch, np.int64)
        self.letters = tempfile.SpooledTemporaryFile(IN_MEMORY, dir=scratch)  # noqa: SIM115
        self.waiting: list[tuple[int, int]] = []  # image and end, not in the columns yet
        self.end = 0

    def add(self, image: int, counts: bytes) -> None:
        """Take the mask of a box of image `image`, by its place."""
        self.letters.write(counts)
        self.end += len(counts)
        self.waiting.append((image, self.end))
        if len(self.waiting) >= ROWS:
            self._settle()

    def write(self, writer: PackedWriter) -> dict[str, Any]:
        """Write all masks, grouped by image, in the order in which they came within each; returns
        what the file's content says of them."""
        self._settle()
        order = self.images.whole().argsort(kind="stable")
        ends = self.ends.whole()
        starts = np.concatenate([[0], ends[:-1]]) if len(ends) else ends
        writer.add(ENDS, [(ends - starts)[order].cumsum()])
        writer.add(LETTERS, self._letters(starts[order], ends[order]))
        return {"masks": VERSION}

    def _settle(self) -> None:
        images, ends = zip(*self.waiting, strict=True) if self.waiting else ((), ())
        self.images.add(images)
        self.ends.add(ends)
        self.waiting.clear()

    def _letters(self, starts: Sequence[int], ends: Sequence[int]) -> Iterator[np.ndarray]:
        yield np.zeros(0, np.uint8)
        for row in range(0, len(starts), ROWS):
            rows = slice(row, row + ROWS)
            here = zip(starts[rows].tolist(), ends[rows].tolist(), strict=True)
            yield np.frombuffer(b"".join(self._read(a, b) for a, b in here), np.uint8)

    def _read(self, start: int, end: int) -> bytes:
        self.letters.seek(start)
        return self.letters.read(end - start)
