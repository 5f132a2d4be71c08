"""Read COCO JSON, with checks that name what is wrong.

Boxes are xywh in the file and float32 xyxy pixels everywhere in Python. Category ids are mapped to
contiguous labels 0..K-1 in the order of the ids, and back.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from data.errors import DataError
from data.images import check_images, read_image
from data.json_files import read_json


@dataclass(frozen=True)
class Record:
    """One image of a dataset with its boxes."""

    image_id: int
    file_name: str  # relative to the folder of the images
    height: int
    width: int
    boxes: Tensor  # (M, 4) float32 xyxy pixels, inside the image
    labels: Tensor  # (M,) int64, 0..K-1


@dataclass(frozen=True)
class Categories:
    """The classes of a dataset; label `i` is category `ids[i]`."""

    ids: tuple[int, ...]
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.ids)

    def label(self, category_id: int) -> int:
        """Contiguous label 0..K-1 of a category id of the file."""
        return self.ids.index(category_id)


def load_coco(path: str | Path) -> dict[str, list[dict[str, Any]]]:
    """Read a COCO JSON and check its structure.

    Returns:
        The file's dict; `images`, `annotations` (may be empty) and `categories` are lists of
        dicts that have the fields detection needs.

    Raises:
        DataError: the file is missing, not JSON, lacks a field, repeats an id, or an annotation
            refers to an image or a category that is not listed, or its box is not four numbers.
    """
    content = read_json(path)
    check_coco(path, content)
    return content


def check_coco(path: str | Path, content: Any) -> None:
    """Check the structure of a COCO JSON that was read from `path`.

    Raises:
        DataError: see `load_coco`.
    """
    _check_lists(path, content)
    image_ids = _unique_ids(path, content["images"], "images")
    category_ids = _unique_ids(path, content["categories"], "categories")
    for annotation in content["annotations"]:
        name = f"annotation {annotation.get('id', '(without id)')}"
        if annotation["image_id"] not in image_ids:
            raise DataError(
                f"{path}: {name} has image_id {annotation['image_id']!r}, which is not in "
                "'images'; add the image or remove the annotation"
            )
        if annotation["category_id"] not in category_ids:
            raise DataError(
                f"{path}: {name} has category_id {annotation['category_id']!r}, which is not in "
                "'categories'; add the category or remove the annotation"
            )
        if not _is_box(annotation["bbox"]):
            raise DataError(
                f"{path}: {name} has bbox {annotation['bbox']!r}, which is not four finite numbers "
                "[x, y, width, height]; correct it or remove the annotation"
            )


def _is_box(bbox: Any) -> bool:
    if not isinstance(bbox, Sequence) or len(bbox) != 4:
        return False
    return all(isinstance(v, (int, float)) and math.isfinite(v) for v in bbox)


KINDS: dict[str, Callable[[Any], bool]] = {
    "an integer or text": lambda value: isinstance(value, (int, str)),
    "an integer": lambda value: isinstance(value, int),
    "text": lambda value: isinstance(value, str),
    "a number above 0": lambda value: isinstance(value, (int, float)) and value > 0,
    "anything": lambda value: True,
}
FIELDS = {
    "images": {
        "id": "an integer or text",
        "file_name": "text",
        "width": "a number above 0",
        "height": "a number above 0",
    },
    "annotations": {
        "image_id": "an integer or text",
        "category_id": "an integer",
        "bbox": "anything",  # checked later, where the message can name the annotation
    },
    "categories": {"id": "an integer", "name": "anything"},
}


def _check_lists(path: str | Path, content: Any) -> None:
    if not isinstance(content, dict):
        raise DataError(
            f"{path}: not a COCO JSON (its top level is not an object); convert it first"
        )
    for key, fields in FIELDS.items():
        if not isinstance(content.get(key), list):
            raise DataError(f"{path}: not a COCO JSON, it has no list '{key}'; convert it first")
        for entry in content[key]:
            for field, kind in fields.items():
                if not isinstance(entry, dict) or field not in entry:
                    raise DataError(
                        f"{path}: an entry of '{key}' has no '{field}' "
                        f"({json.dumps(entry)[:80]}); add it"
                    )
                if not KINDS[kind](entry[field]):
                    raise DataError(
                        f"{path}: an entry of '{key}' has '{field}' "
                        f"{json.dumps(entry[field])[:80]}, which is not {kind}; correct it"
                    )


def _unique_ids(path: str | Path, entries: list[dict[str, Any]], key: str) -> set[int]:
    ids = {entry["id"] for entry in entries}
    if len(ids) != len(entries):
        raise DataError(f"{path}: an id occurs twice in '{key}'; make the ids unique")
    return ids


def read_categories(content: Mapping[str, Any]) -> Categories:
    """Categories of a loaded COCO JSON in the order of their ids."""
    entries = sorted(content["categories"], key=lambda entry: entry["id"])
    return Categories(tuple(e["id"] for e in entries), tuple(str(e["name"]) for e in entries))


MIN_SIDE = 0.01  # pixels; float32 coordinates could lose a side smaller than this


def _box_problem(bbox: Sequence[float], height: int, width: int) -> str | None:
    """Why an xywh box cannot be trained on, or None."""
    x, y, w, h = bbox
    if w <= 0 or h <= 0:
        return "has no area"
    if x >= width or y >= height or x + w <= 0 or y + h <= 0:
        return f"lies outside the image of {width} x {height} pixels"
    if min(min(x + w, width) - max(x, 0), min(y + h, height) - max(y, 0)) < MIN_SIDE:
        return "has next to no area inside the image"
    return None


class CocoDataset:
    """The images of a COCO JSON with their boxes.

    Args:
        images: folder of the images.
        annotations: COCO JSON; a file of proposals (one category `object`) is read the same way.
        skip_empty: leave out images without a box that can be trained on.
        bad_boxes: what to do with boxes without area or outside the image: `error` names the
            first, `drop` leaves them out and counts them in `dropped` (COCO 2017 has two).

    Crowd boxes (`iscrowd` 1) are not trained on. Boxes that stick out are clipped to the image.

    Raises:
        DataError: see `load_coco`; also an image file that is missing or truncated, an unusable
            box, or nothing left to train on.
    """

    def __init__(
        self,
        images: str | Path,
        annotations: str | Path,
        skip_empty: bool = False,
        bad_boxes: str = "error",
    ) -> None:
        self.images, self.annotations = Path(images), Path(annotations)
        content = load_coco(annotations)
        self.categories = read_categories(content)
        self.dropped = 0
        records = self._records(content, bad_boxes)
        self.records = [r for r in records if len(r.boxes) or not skip_empty]
        if not self.records:
            what = "no image with a usable box" if records else "no image"
            raise DataError(f"{annotations}: holds {what}; give a file that lists some")
        check_images(self.images, [record.file_name for record in self.records])

    def _records(self, content: dict[str, list[dict[str, Any]]], bad_boxes: str) -> list[Record]:
        by_image: dict[int, list[tuple[list[float], int]]]
        by_image = {e["id"]: [] for e in content["images"]}
        size = {e["id"]: (e["height"], e["width"]) for e in content["images"]}
        label_of = {category_id: i for i, category_id in enumerate(self.categories.ids)}
        for annotation in content["annotations"]:
            if annotation.get("iscrowd", 0):
                continue
            height, width = size[annotation["image_id"]]
            problem = _box_problem(annotation["bbox"], height, width)
            if problem and bad_boxes == "error":
                raise DataError(
                    f"{self.annotations}: the box {annotation['bbox']} of annotation "
                    f"{annotation.get('id', '(without id)')} {problem}; correct it, or set "
                    "data.bad_boxes=drop to leave such boxes out"
                )
            if problem:
                self.dropped += 1
                continue
            x, y, w, h = annotation["bbox"]
            box = [max(x, 0.0), max(y, 0.0), min(x + w, width), min(y + h, height)]
            by_image[annotation["image_id"]].append((box, label_of[annotation["category_id"]]))
        return [self._record(entry, by_image[entry["id"]]) for entry in content["images"]]

    @staticmethod
    def _record(entry: dict[str, Any], boxes: list[tuple[list[float], int]]) -> Record:
        return Record(
            image_id=entry["id"],
            file_name=entry["file_name"],
            height=entry["height"],
            width=entry["width"],
            boxes=torch.tensor([box for box, _ in boxes], dtype=torch.float32).reshape(-1, 4),
            labels=torch.tensor([label for _, label in boxes], dtype=torch.int64),
        )

    def __len__(self) -> int:
        return len(self.records)

    def read(self, index: int) -> tuple[Image.Image, Record]:
        """Decode image `index`.

        Raises:
            DataError: the file is unreadable, or its size is not the one the annotations state.
        """
        record = self.records[index]
        path = self.images / record.file_name
        image = read_image(path)
        if image.size != (record.width, record.height):
            raise DataError(
                f"{path}: has {image.width} x {image.height} pixels, but {self.annotations} says "
                f"{record.width} x {record.height}; correct the file's entry"
            )
        return image, record

    @property
    def aspect_ratios(self) -> list[float]:
        """Height / width of every image."""
        return [record.height / record.width for record in self.records]
