"""A COCO file as arrays: what labels and proposals are on disk and in memory.

It holds what the file says, in the form of `data.coco_json`, whatever folder of images and whatever
options it is used with. `data.coco_packing` makes it, `data.coco_file` finds or keeps it beside the
JSON.

Legend: N images, B boxes of all images, K categories.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from data.coco_ids import Id
from data.errors import DataError
from data.packed_file import Packed
from data.texts import Texts

VERSION = 1  # of what is packed, and how; a file of another one is made anew
BLOCK = 2**19  # boxes that are looked at together


class Boxes(NamedTuple):
    """Some of the boxes, in the order of their images."""

    xywh: np.ndarray  # (B, 4) float64, as in the file
    labels: np.ndarray  # (B,) int64, the place of the category among all
    crowd: np.ndarray  # (B,) bool


class PackedCoco:
    """The arrays of a COCO file.

    Args:
        packed: from `data.coco_packing`.

    Raises:
        DataError: it was made by another version.
    """

    def __init__(self, packed: Packed) -> None:
        self.packed, content = packed, packed.content
        if content.get("version") != VERSION:
            raise DataError(
                f"{packed.source}: was packed by another version of this project; write it again"
            )
        self.info: Any = content["info"]
        self.category_ids: tuple[Id, ...] = tuple(content["category_ids"])  # in their order
        self.category_names: tuple[str, ...] = tuple(content["category_names"])
        self.mended: Counter[str] = Counter(content["mended"])  # see `clean_coco`
        # Boxes with the image, class and place of another: with crowd boxes, and of the others.
        self.repeated: dict[str, int] = content["repeated"]
        self.starts = packed.stored("starts")  # (N + 1,): image i has the boxes up to i + 1's
        self.names = Texts(packed.stored("names"), packed.stored("name_ends"))  # `file_name`
        self.sizes = packed.stored("sizes")  # (N, 2) int32 (height, width); 0 where unknown

    def __len__(self) -> int:
        return len(self.names)

    def __reduce__(self) -> tuple[Any, ...]:
        return PackedCoco, (self.packed,)  # which opens its file again instead of being copied

    @cached_property
    def _text_ids(self) -> Texts | None:
        """The images' ids in JSON, if they are not all whole numbers that int64 holds."""
        if "ids" in self.packed:
            return None
        return Texts(self.packed.stored("id_letters"), self.packed.stored("id_ends"))

    def image_id(self, image: int) -> Id:
        """The id of an image."""
        if self._text_ids is None:
            return self.packed.stored("ids")[image].item()
        return json.loads(self._text_ids[image])

    def boxes(self, rows: slice) -> Boxes:
        """Boxes by their place among those of all images."""
        xywh = self.packed.numbers("xywh", rows, np.float64)
        labels = self.packed.numbers("labels", rows, np.int64)
        crowd = self._crowd(rows, len(xywh))
        return Boxes(xywh, labels, crowd)

    def _crowd(self, rows: slice, length: int) -> np.ndarray:
        if "crowd" not in self.packed:  # there are none
            return np.zeros(length, bool)
        return self.packed.stored("crowd")[rows].astype(bool)

    def areas(self, rows: slice) -> np.ndarray:
        """(B,) float64, the areas that the file states or else those of the boxes."""
        if "areas" in self.packed:
            return self.packed.numbers("areas", rows, np.float64)
        return box_areas(self.packed.numbers("xywh", rows, np.float64))

    def box_ids(self, rows: slice) -> np.ndarray:
        """(B,) int64, the ids of the annotations."""
        if "box_ids" in self.packed:
            return self.packed.numbers("box_ids", rows, np.int64)
        return np.arange(*rows.indices(self.starts[-1])) + 1

    def blocks(self) -> Iterator[slice]:
        """Images in runs of about `BLOCK` boxes; slices of 0..N."""
        first = 0
        while first < len(self):
            end = int(np.searchsorted(self.starts, self.starts[first] + BLOCK, "right")) - 1
            end = min(max(end, first + 1), len(self))
            yield slice(first, end)
            first = end

    def images_with_boxes(self, with_crowd: bool) -> np.ndarray:
        """Places of the images that have boxes, ascending; crowd boxes count or not."""
        if with_crowd or "crowd" not in self.packed:
            return np.diff(self.starts).nonzero()[0]
        ordinary = np.concatenate([[0], np.cumsum(~self._crowd(slice(None), 0))])
        return np.diff(ordinary[self.starts]).nonzero()[0]

    def crowds(self) -> int:
        """How many boxes are crowds."""
        if "crowd" not in self.packed:
            return 0
        return int(self.packed.stored("crowd").sum(dtype=np.int64))

    def images(self) -> list[dict[str, Any]]:
        """The entries of the images, in the form of `data.coco_json`."""
        sizes = [tuple(size) if all(size) else (None, None) for size in self.sizes.tolist()]
        return [
            {"id": self.image_id(place), "file_name": name, "height": height, "width": width}
            for place, (name, (height, width)) in enumerate(zip(self.names, sizes, strict=True))
        ]

    def as_dict(self, keep_crowd: bool = False) -> dict[str, Any]:
        """The content as from `load_coco`, without fields that nothing here uses; in memory, so for
        labels rather than proposals.

        Args:
            keep_crowd: crowd boxes are ordinary ones.
        """
        rows = slice(0, int(self.starts[-1]))
        xywh, labels, crowd = self.boxes(rows)
        images = self.images()
        image_of = np.repeat(np.arange(len(self)), np.diff(self.starts))
        columns = (
            self.box_ids(rows), image_of, labels, xywh, self.areas(rows),
            crowd & (not keep_crowd),
        )  # fmt: skip
        return {
            "images": images,
            "annotations": [
                {
                    "id": number,
                    "image_id": images[image]["id"],
                    "category_id": self.category_ids[label],
                    "bbox": box,
                    "area": area,
                    "iscrowd": int(is_crowd),
                }
                for number, image, label, box, area, is_crowd in zip(
                    *(column.tolist() for column in columns), strict=True
                )
            ],
            "categories": [
                {"id": i, "name": name}
                for i, name in zip(self.category_ids, self.category_names, strict=True)
            ],
            "info": self.info,
        }


def box_areas(xywh: np.ndarray) -> np.ndarray:
    """(B,) the areas of boxes (B, 4) xywh; 0 for those without."""
    return np.maximum(xywh[:, 2], 0) * np.maximum(xywh[:, 3], 0)
