"""Pack a COCO JSON into arrays, a part at a time: memory is bounded, whatever the file's size.

Most annotations are in plain form, and are turned into arrays many at a time. A part with anything
unusual in it goes entry by entry through `data.coco_json`, which corrects it or says what is wrong.

Legend: B boxes.
"""

from __future__ import annotations

import gc
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import IO, Any

import numpy as np
from tqdm import tqdm

from data.box_columns import BoxColumns, Values
from data.coco_ids import Id, ListedIds, canonical_id, id_order
from data.coco_json import (
    Entry,
    check_list,
    clean_annotation,
    clean_categories,
    clean_image,
    unlisted,
    without_repeats,
)
from data.coco_values import AREA_LIMIT, LIMIT
from data.json_files import readable
from data.json_stream import Part, read_parts
from data.packed_coco import VERSION
from data.packed_file import PackedWriter
from data.processes import is_quiet
from data.texts import Texts

LISTS = ("images", "annotations", "categories")
PATIENCE = 3  # seconds until a bar shows how much is left
INT64 = np.iinfo(np.int64)


def pack_coco(
    path: str | Path,
    file: IO[bytes],
    scratch: str | Path | None = None,
    source: dict[str, Any] | None = None,
) -> None:
    """Write the packed form of a COCO JSON.

    Args:
        path: of the JSON.
        file: to write to.
        scratch: folder for temporary files, up to 70 bytes per box; None: the system's.
        source: what to remember of the JSON.

    Raises:
        DataError: see `data.coco_json.load_coco`.
    """
    content = _Content(path, scratch)
    with without_collection():
        for key, value, first in read_coco_parts(path, LISTS):
            content.take(key, value, first)
    content.finish(file, source)


def read_coco_parts(path: str | Path, lists: Sequence[str]) -> Iterator[Part]:
    """`read_parts`, with errors that name the file and the remedy."""
    with readable(path):
        size = os.path.getsize(path)
        bar = tqdm(
            total=size, desc="read", unit="B", unit_scale=True, leave=False, delay=PATIENCE,
            disable=is_quiet(),
        )  # fmt: skip
        with bar:
            yield from read_parts(path, lists, bar.update)


class _Content:
    """What has been read of a file."""

    def __init__(self, path: str | Path, scratch: str | Path | None) -> None:
        self.path, self.scratch = path, scratch
        self.fields: dict[str, Any] = {}  # of the three lists only the first entry
        self.images: list[Entry] = []
        self.categories: list[Any] = []
        self.boxes = BoxColumns(scratch)
        self.mended: Counter[str] = Counter()

    def take(self, key: str | None, value: Any, first: bool) -> None:
        """Take a part of the file."""
        if key is None:
            check_list(self.path, value, "images")  # raises, as this is no object
        in_parts = key in LISTS and isinstance(value, list)
        if first:
            self.fields[key] = value[:1] if in_parts else value
        if not in_parts:
            return
        if key == "images":
            clean = [clean_image(self.path, entry) for entry in value]
            self.images = clean if first else self.images + clean
        elif key == "categories":
            self.categories = value if first else self.categories + value
        else:
            if first:
                self.boxes = BoxColumns(self.scratch)
            self.boxes.add(plain_values(value) or odd_values(self.path, value, self.boxes.mended))

    def finish(self, file: IO[bytes], source: dict[str, Any] | None) -> None:
        """Check what needs all of the file, and write it."""
        for key in LISTS:
            check_list(self.path, self.fields, key)
        images = without_repeats(self.path, self.images, "images", "file_name", self.mended)
        categories = clean_categories(self.path, self.categories, self.mended)
        categories = sorted(categories, key=lambda entry: id_order(entry["id"]))
        places = {
            "image_id": self._places("image_id", images),
            "category_id": self._places("category_id", categories),
        }
        info = self.fields.get("info")
        write_packed(file, images, categories, self.boxes, info, self.mended, source, places)

    def _places(self, field: str, entries: Sequence[Entry]) -> np.ndarray:
        """For each different value of a field of the annotations the place of the entry that it
        means."""
        listed = ListedIds(entry["id"] for entry in entries)
        found = [listed.find(value) for value in self.boxes.references[field]]
        strays = [number for number, value in enumerate(found) if value is None]
        if strays:
            # Only this one is needed again, so no entry is kept for it.
            row = self.boxes.first_row(field, strays)
            raise unlisted(self.path, self._annotation(row), field)
        return places_of(found, entries)

    def _annotation(self, row: int) -> Any:
        """An annotation of the file as it is written there."""
        for part in _last_list(self.path, "annotations"):
            if row < len(part):
                return part[row]
            row -= len(part)
        raise AssertionError("the file has changed while it was read")


def _last_list(path: str | Path, key: str) -> Iterator[list[Any]]:
    """The parts of a list; if the key occurs twice, of the last one, which counts."""
    parts = [p for p in read_coco_parts(path, (key,)) if p.key == key and p.first]
    times = 0
    for part in read_coco_parts(path, (key,)):
        times += part.key == key and part.first
        if part.key == key and times == len(parts):
            yield part.value


def plain_values(entries: Sequence[Any]) -> Values | None:
    """The values of annotations that are all in plain form: numbers are numbers, and nothing is to
    be corrected. None: at least one is not."""
    try:
        image_ids = [entry["image_id"] for entry in entries]
        category_ids = [entry["category_id"] for entry in entries]
        corners = [entry["bbox"] for entry in entries]
        areas = [entry["area"] for entry in entries]
        ids = [entry["id"] for entry in entries]
        flags = [(entry.get("iscrowd", 0), entry.get("ignore", 0)) for entry in entries]
    except (TypeError, KeyError, AttributeError):
        return None
    if not (set(map(type, corners)) <= {list} and set(map(len, corners)) <= {4}):
        return None
    numbers = list(chain.from_iterable(corners))
    marks = list(chain.from_iterable(flags))
    if not (
        _are(image_ids, int, str)
        and _are(category_ids, int, str)
        and _are(ids, int)
        and _are(numbers, int, float)
        and _are(areas, int, float)
        and _are(marks, int)
    ):
        return None
    try:
        xywh = np.array(numbers, np.float64).reshape(-1, 4)
        area = np.array(areas, np.float64)
        crowd = np.array(marks, np.int64).reshape(-1, 2)
        box_ids = np.array(ids, np.int64)
    except OverflowError:
        return None
    usual = (
        (np.abs(xywh) <= LIMIT).all()  # refuses NaN too
        and xywh.any(axis=1).all()
        and ((area > 0) & (area <= AREA_LIMIT)).all()
        and ((crowd == 0) | (crowd == 1)).all()
    )
    if not usual:
        return None
    return Values(image_ids, category_ids, xywh, crowd.any(axis=1), area, box_ids)


def _are(values: Sequence[Any], *kinds: type) -> bool:
    """Whether all values are of these types; True is not an int here."""
    return set(map(type, values)) <= set(kinds)


def odd_values(path: str | Path, entries: Sequence[Any], mended: Counter[str]) -> Values:
    """The values of any annotations.

    Args:
        path: of the file, for messages.
        entries: corrected in place.
        mended: corrections are counted here, see `clean_coco`.

    Raises:
        DataError: see `data.coco_json.load_coco`.
    """
    for entry in entries:
        clean_annotation(path, entry, mended)
    ids = [canonical_id(entry.get("id")) for entry in entries]
    whole = _are(ids, int) and all(INT64.min <= value <= INT64.max for value in ids)
    return Values(
        [entry["image_id"] for entry in entries],
        [entry["category_id"] for entry in entries],
        np.array([entry["bbox"] for entry in entries], np.float64).reshape(-1, 4),
        np.array([entry["iscrowd"] for entry in entries], bool),
        np.array([entry["area"] for entry in entries], np.float64),
        np.array(ids, np.int64) if whole else None,
    )


@contextmanager
def without_collection() -> Iterator[None]:
    """Python's search for cycles of unused objects takes longer than decoding; here are none."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def write_packed(
    file: IO[bytes],
    images: Sequence[Entry],
    categories: Sequence[Entry],
    boxes: BoxColumns,
    info: Any,
    mended: Counter[str] | None = None,
    source: dict[str, Any] | None = None,
    places: Mapping[str, np.ndarray] | None = None,
    write_more: Callable[[PackedWriter], dict[str, Any]] | None = None,
) -> None:
    """Write a packed COCO file.

    Args:
        file: to write to.
        images, categories: entries in the form of `data.coco_json`, categories in the order of
            their ids.
        boxes: the annotations.
        info: of the JSON.
        mended: what was corrected, see `clean_coco`.
        source: what to remember of the JSON.
        places: for each of `boxes.references`, the place of the image or category that is meant;
            None: these are the very ids of the entries.
        write_more: writes further arrays, and returns what else belongs to the content.
    """
    if places is None:
        entries = {"image_id": images, "category_id": categories}
        places = {field: places_of(boxes.references[field], entries[field]) for field in entries}
    writer = PackedWriter(file)
    write_images(writer, images)
    repeated = boxes.write(writer, places["image_id"], places["category_id"], len(images))
    more = {} if write_more is None else write_more(writer)
    writer.end(
        {
            **more,
            "version": VERSION,
            "source": source,
            "info": info,
            "category_ids": [entry["id"] for entry in categories],
            "category_names": [str(entry["name"]) for entry in categories],
            "mended": dict((mended or Counter()) + boxes.mended),
            "repeated": repeated,
        }
    )


def places_of(ids: Sequence[Id], entries: Sequence[Entry]) -> np.ndarray:
    """The place of each id among those of the entries, int64."""
    place = {entry["id"]: number for number, entry in enumerate(entries)}
    return np.array([place[value] for value in ids], np.int64)


def write_images(writer: PackedWriter, images: Sequence[Entry]) -> None:
    """Write the arrays of the images, entries in the form of `data.coco_json`."""
    names = Texts.of(entry["file_name"] for entry in images)
    writer.add("names", [names.letters])
    writer.add("name_ends", [names.ends])
    sizes = [(entry["height"] or 0, entry["width"] or 0) for entry in images]
    writer.add("sizes", [np.array(sizes, np.int32).reshape(-1, 2)])
    ids = [entry["id"] for entry in images]
    if _are(ids, int) and all(INT64.min <= value <= INT64.max for value in ids):
        writer.add("ids", [np.array(ids, np.int64)])
    else:
        texts = Texts.of(map(json.dumps, ids))
        writer.add("id_letters", [texts.letters])
        writer.add("id_ends", [texts.ends])
