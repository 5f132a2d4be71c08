"""The images of a COCO JSON with their boxes.

Boxes are xywh in the file and float32 xyxy pixels everywhere in Python. Category ids are mapped to
contiguous labels 0..K-1 in the order of the ids, and back. How the file is read stands in
`data/coco_json.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from data.coco_contents import Contents
from data.coco_ids import Id, id_order
from data.coco_json import load_coco, name_of, read_coco
from data.counting import listing
from data.errors import DataError, DatasetError
from data.file_names import locate_files
from data.image_check import StatedSizes, check_images, check_made_with
from data.images import AS_STORED, ImageReading, read_listed
from data.records import Record, Records

# `load_coco` and `Record` are imported from here by programs that are not ours.
__all__ = ["Categories", "CocoDataset", "Record", "box_problem", "load_coco", "read_categories"]


@dataclass(frozen=True)
class Categories:
    """The classes of a dataset; label `i` is category `ids[i]`."""

    ids: tuple[Id, ...]
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.ids)

    def label(self, category_id: Id) -> int:
        """Contiguous label 0..K-1 of a category id of the file."""
        return self.ids.index(category_id)


def read_categories(content: Mapping[str, Any]) -> Categories:
    """Categories of a loaded COCO JSON in the order of their ids, numbers before text."""
    entries = sorted(content["categories"], key=lambda entry: id_order(entry["id"]))
    return Categories(tuple(e["id"] for e in entries), tuple(str(e["name"]) for e in entries))


ROUNDING = 0.5  # pixels that a box may stick out of its image without a word
MIN_SIDE = 0.01  # pixels; float32 coordinates could lose a side smaller than this


def box_problem(bbox: Sequence[float], height: int | None, width: int | None) -> str | None:
    """Why an xywh box cannot be used in an image of this size (None: unknown), or None."""
    x, y, w, h = bbox
    if w <= 0 or h <= 0:
        return "has no area"
    if height is None or width is None:
        return None
    if x >= width or y >= height or x + w <= 0 or y + h <= 0:
        return f"lies outside the image of {width} x {height} pixels"
    if min(min(x + w, width) - max(x, 0), min(y + h, height) - max(y, 0)) < MIN_SIDE:
        return "has next to no area inside the image"
    return None


def part_inside(bbox: Sequence[float], height: int | None, width: int | None) -> Sequence[float]:
    """The part of a usable xywh box in an image of this size (None: unknown); the box itself if it
    lies inside."""
    x, y, w, h = bbox
    if height is None or width is None:
        return bbox
    if x >= 0 and y >= 0 and x + w <= width and y + h <= height:
        return bbox
    left, top = max(x, 0), max(y, 0)
    return [left, top, min(x + w, width) - left, min(y + h, height) - top]


def fill_sizes(
    directory: str | Path, entries: Sequence[dict[str, Any]], reading: ImageReading = AS_STORED
) -> int:
    """Set width and height of the images of unknown size from the files' headers.

    Returns:
        How many images had no size.

    Raises:
        DataError: a file is unusable, whatever `reading` says of such files: without a size its
            boxes cannot be checked.
    """
    unknown = [entry for entry in entries if entry["width"] is None]
    reading = replace(reading, on_bad_image="error")
    checked = check_images(directory, [entry["file_name"] for entry in unknown], reading)
    for entry, (height, width) in zip(unknown, checked.sizes, strict=True):
        entry.update(height=height, width=width)
    return len(unknown)


class CocoDataset:
    """The images of a COCO JSON with their boxes.

    Args:
        images: folder of the images.
        annotations: COCO JSON; a file of proposals (one category `object`) is read the same way.
        skip_empty: leave out images without a box that can be trained on.
        bad_boxes: what to do with boxes without area or outside the image: `error` names the
            first, `drop` leaves them out and counts them (COCO 2017 has two).
        crowd: what to do with boxes marked `iscrowd` or `ignore`: `ignore` does not train on them,
            `keep` takes them as ordinary boxes (CVAT marks every mask so).
        reading: how the images are read; sizes and boxes are those of pictures read so.
        allow_outside: whether a `file_name` may lead out of the folder of the images.

    Boxes that stick out are clipped to the image. `contents` counts what is there, what was left
    out and what was corrected.

    Raises:
        DataError: see `read_coco` and `locate_files`; also an image file that is truncated or that
            has another size than stated, an unusable box, or nothing left to train on.
    """

    def __init__(
        self,
        images: str | Path,
        annotations: str | Path,
        skip_empty: bool = False,
        bad_boxes: str = "error",
        crowd: str = "ignore",
        reading: ImageReading = AS_STORED,
        allow_outside: bool = False,
    ) -> None:
        self.images, self.annotations = Path(images), Path(annotations)
        self.crowd, self.reading = crowd, reading
        content, mended = read_coco(annotations, crowd)
        check_made_with(annotations, content, reading)
        self.categories = read_categories(content)
        by_image = _by_image(content)
        entries = [e for e in content["images"] if by_image[e["id"]] or not skip_empty]
        names = [entry["file_name"] for entry in entries]
        files = locate_files(images, names, annotations, allow_outside=allow_outside)
        for entry, file in zip(entries, files, strict=True):
            entry["file_name"] = file
        sizes = fill_sizes(images, entries, reading)
        label_of = {category_id: i for i, category_id in enumerate(self.categories.ids)}
        records = Records(self._record(e, by_image[e["id"]], label_of, bad_boxes) for e in entries)
        with_boxes = int((records.box_counts > 0).sum())
        self.records = Records(r for r in records if len(r.boxes)) if skip_empty else records
        self.contents = Contents(
            images=len(self.records),
            boxes=len(self.records.boxes),
            classes=len(self.categories),
            empty_images=len(content["images"]) - with_boxes,
            skip_empty=skip_empty,
            crowds=sum(a["iscrowd"] for a in content["annotations"]),
            bad_boxes=sum(len(by_image[e["id"]]) for e in entries) - len(records.boxes),
            sizes=sizes,
            **mended,
            **_renamed(names, records.file_names),
            **_oddities(entries, by_image, records, self.categories),
        )
        self._check_usable(len(content["images"]))
        stated = StatedSizes(annotations, self.records.sizes)
        checked = check_images(self.images, self.records.file_names, reading, stated)
        self.notes, self.bad = checked.notes, checked.bad

    def _record(
        self,
        entry: dict[str, Any],
        annotations: Sequence[dict[str, Any]],
        label_of: Mapping[Id, int],
        bad_boxes: str,
    ) -> Record:
        """The record of an image, its boxes clipped and bad ones left out."""
        height, width = entry["height"], entry["width"]
        boxes, labels = [], []
        for annotation in annotations:
            problem = box_problem(annotation["bbox"], height, width)
            if problem and bad_boxes == "error":
                raise DataError(
                    f"{self.annotations}: the box {annotation['bbox']} of "
                    f"{name_of(annotation)} {problem}; correct it, or set "
                    "data.bad_boxes=drop to leave such boxes out"
                )
            if not problem:
                x, y, w, h = annotation["bbox"]
                boxes.append([max(x, 0.0), max(y, 0.0), min(x + w, width), min(y + h, height)])
                labels.append(label_of[annotation["category_id"]])
        return Record(
            image_id=entry["id"],
            file_name=entry["file_name"],
            height=height,
            width=width,
            boxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
            labels=torch.tensor(labels, dtype=torch.int64),
        )

    def _check_usable(self, listed: int) -> None:
        """There must be an image, and a box if the file has any; boxes must be in pixels."""
        counts = self.contents
        if not counts.boxes and counts.left_out:
            remedy = (
                "set data.crowd=keep to use crowd boxes like any other (CVAT marks every mask so)"
                if counts.crowds
                else "correct the boxes or the sizes of the images"
            )
            raise DatasetError(
                f"{self.annotations}: holds no image with a usable box, only "
                f"{listing(counts.unused_boxes())}; {remedy}"
            )
        if not self.records:
            what = "no image with a usable box" if listed else "no image"
            raise DatasetError(f"{self.annotations}: holds {what}; give a file that lists some")
        if counts.boxes and self.records.boxes.max() <= 1:
            raise DatasetError(
                f"{self.annotations}: all boxes lie between 0 and 1; give 'bbox' in pixels, "
                "not as fractions of the image"
            )

    @property
    def dropped(self) -> int:
        """Boxes without area or outside their image that were left out."""
        return self.contents.bad_boxes

    def __len__(self) -> int:
        return len(self.records)

    def read(self, index: int) -> tuple[Image.Image, Record]:
        """Decode image `index`.

        Raises:
            DataError: the file is unreadable, or its size is not the one the annotations state.
        """
        record = self.records[index]
        size = (record.width, record.height)
        return read_listed(self.path(index), size, self.annotations, self.reading), record

    def path(self, index: int) -> Path:
        """The file of image `index`."""
        return self.images / self.records.file_names[index]

    @property
    def aspect_ratios(self) -> list[float]:
        """Height / width of every image."""
        return [height / width for height, width in self.records.sizes]


def _by_image(content: Mapping[str, Any]) -> dict[Id, list[dict[str, Any]]]:
    """The annotations of each image, crowds left out."""
    by_image: dict[Id, list[dict[str, Any]]] = {entry["id"]: [] for entry in content["images"]}
    for annotation in content["annotations"]:
        if not annotation["iscrowd"]:
            by_image[annotation["image_id"]].append(annotation)
    return by_image


def _renamed(names: Sequence[str], files: Sequence[str]) -> dict[str, Any]:
    """The names that mean a file of another name, for `Contents`."""
    pairs = [pair for pair in zip(names, files, strict=True) if pair[0] != pair[1]]
    return {"renamed": len(pairs), "example": pairs[0] if pairs else ("", "")}


def _oddities(
    entries: Sequence[dict[str, Any]],
    by_image: Mapping[Id, Sequence[dict[str, Any]]],
    records: Records,
    categories: Categories,
) -> dict[str, Any]:
    """What is worth a look, for `Contents`."""
    per_class = Counter(records.labels.tolist())
    per_name = Counter(categories.names)
    per_file = Counter(records.file_names)
    return {
        "shared_files": sum(number > 1 for number in per_file.values()),
        "repeated_boxes": sum(
            len(annotations) - len({(a["category_id"], *a["bbox"]) for a in annotations})
            for annotations in by_image.values()
        ),
        "clipped": sum(
            _sticks_out(annotation["bbox"], entry["height"], entry["width"])
            for entry in entries
            for annotation in by_image[entry["id"]]
        ),
        "corners": sum(
            _like_corners(annotation["bbox"], entry["height"], entry["width"])
            for entry in entries
            for annotation in by_image[entry["id"]]
        ),
        "unused": tuple(n for i, n in enumerate(categories.names) if not per_class[i]),
        "same_names": tuple(name for name, number in per_name.items() if number > 1),
    }


def _sticks_out(bbox: Sequence[float], height: int, width: int) -> bool:
    """Whether a usable box reaches out of the image by more than rounding explains."""
    x, y, w, h = bbox
    out = max(-x, -y, x + w - width, y + h - height) > ROUNDING
    return out and box_problem(bbox, height, width) is None


def _like_corners(bbox: Sequence[float], height: int, width: int) -> bool:
    """Whether four numbers reach far out of the image as xywh, but not as two corners."""
    x, y, x2, y2 = bbox
    inside = 0 <= x < x2 <= width and 0 <= y < y2 <= height
    return inside and (x + x2 > 1.1 * width or y + y2 > 1.1 * height)
