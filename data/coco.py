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

import numpy as np
from PIL import Image

from data.coco_boxes import box_problem
from data.coco_contents import Contents
from data.coco_file import open_coco
from data.coco_ids import Id, id_order
from data.coco_json import load_coco, require_crowd
from data.coco_masks import add_masks, open_masks
from data.counting import listing
from data.errors import DataError, DatasetError
from data.file_names import locate_files
from data.image_check import StatedSizes, check_images, check_made_with
from data.images import AS_STORED, ImageReading, read_listed
from data.records import Block, Record, Records
from data.texts import Texts
from data.transforms import resized_size

# `load_coco` and `Record` are imported from here by programs that are not ours.
__all__ = ["Categories", "CocoDataset", "Record", "box_problem", "load_coco", "read_categories"]

CLUSTERS = "clusters"  # key of `info` of a file whose categories are clusters of boxes


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


class CocoDataset:
    """The images of a COCO JSON with their boxes.

    Args:
        images: folder of the images.
        annotations: COCO JSON; a file of proposals (one category `object`) is read the same way.
        skip_empty: leave out images without a box that can be trained on.
        bad_boxes: what to do with boxes without area or outside the image: `error` names the
            first, `drop` leaves them out and counts them (COCO 2017 has two). With masks, the same
            goes for polygons of fewer than three points; their boxes stay.
        crowd: what to do with boxes marked `iscrowd` or `ignore`: `ignore` does not train on them,
            `keep` takes them as ordinary boxes (CVAT marks every mask so).
        reading: how the images are read; sizes and boxes are those of pictures read so.
        allow_outside: whether a `file_name` may lead out of the folder of the images.
        seen_at: (short side, cap) of the largest view that is made of an image: large JPEGs are
            decoded smaller, but no smaller than this, see `data.images.read_image`. None: whole.
        with_masks: records have masks; otherwise no mask is read.

    Boxes that stick out are clipped to the image. `contents` counts what is there, what was left
    out and what was corrected.

    Raises:
        DataError: see `open_coco` and `locate_files`; also an image file that is truncated or that
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
        seen_at: tuple[int, int] | None = None,
        with_masks: bool = False,
    ) -> None:
        self.images, self.annotations = Path(images), Path(annotations)
        self.crowd, self.reading, self.seen_at = crowd, reading, seen_at
        require_crowd(crowd)
        keep = crowd == "keep"
        self.coco = coco = open_coco(annotations)
        check_made_with(annotations, {"info": coco.info}, reading)
        self.categories = Categories(coco.category_ids, coco.category_names)
        chosen = coco.images_with_boxes(keep) if skip_empty else np.arange(len(coco))
        all_names = list(coco.names)
        names = [all_names[image] for image in chosen.tolist()]
        files = locate_files(images, names, annotations, allow_outside=allow_outside)
        sizes, unknown = fill_sizes(images, files, coco.sizes[chosen], reading)
        masks = open_masks(annotations, coco, bad_boxes) if with_masks else None
        records = Records(coco, chosen, Texts.of(files), sizes, keep, masks)
        found = _look_through(records, annotations, bad_boxes)
        self.records = records.among(found.with_boxes.nonzero()[0]) if skip_empty else records
        with_boxes = int(found.with_boxes.sum())
        self.contents = Contents(
            images=len(self.records),
            boxes=int(found.per_class.sum()),
            classes=len(self.categories),
            empty_images=len(coco) - with_boxes,
            skip_empty=skip_empty,
            crowds=0 if keep else coco.crowds(),
            bad_boxes=found.bad,
            clipped=found.clipped,
            corners=found.corners,
            sizes=unknown,
            kept_crowds=coco.crowds() if keep else 0,
            repeated_boxes=coco.repeated["all" if keep else "ordinary"],
            masks=None if masks is None else found.masks,
            flat_polygons=0 if masks is None else masks.flat,
            **coco.mended,
            **_renamed(names, files),
            **_oddities(files, found.per_class, self.categories),
        )
        self._check_usable(len(coco), found.largest)
        stated = StatedSizes(annotations, [tuple(size) for size in self.records.sizes.tolist()])
        checked = check_images(self.images, self.records.file_names, reading, stated)
        self.notes, self.bad = checked.notes, checked.bad

    def _check_usable(self, listed: int, largest: float) -> None:
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
        if counts.masks == 0 and counts.boxes:
            raise DatasetError(
                f"{self.annotations}: none of its boxes has a mask ('segmentation'); add them (to "
                "proposals with --masks, or set box_domain.mask_weight=0), or take a detector "
                "without masks"
            )
        if counts.boxes and largest <= 1:
            raise DatasetError(
                f"{self.annotations}: all boxes lie between 0 and 1; give 'bbox' in pixels, "
                "not as fractions of the image"
            )

    @property
    def dropped(self) -> int:
        """Boxes without area or outside their image that were left out."""
        return self.contents.bad_boxes

    @property
    def clusters(self) -> int | None:
        """How many clusters `python -m data.clusters` has put the boxes into, which then are the
        categories; None: the file is another's."""
        made_by = isinstance(self.coco.info, dict) and CLUSTERS in self.coco.info
        return len(self.categories) if made_by else None

    def __len__(self) -> int:
        return len(self.records)

    def read(self, index: int) -> tuple[Image.Image, Record]:
        """Decode image `index`.

        Raises:
            DataError: the file is unreadable, or its size is not the one the annotations state.
        """
        record = self.records[index]
        size, least = (record.width, record.height), None
        if self.seen_at is not None:
            height, width = resized_size(record.height, record.width, *self.seen_at)
            least = (width, height)
        path = self.path(index)
        return read_listed(path, size, self.annotations, self.reading, least), record

    def path(self, index: int) -> Path:
        """The file of image `index`."""
        return self.images / self.records.file_names[index]

    @property
    def aspect_ratios(self) -> list[float]:
        """Height / width of every image."""
        height, width = self.records.sizes.T
        return (height / width).tolist()

    @property
    def sizes(self) -> np.ndarray:
        """(N, 2) int32 (height, width) of every image."""
        return self.records.sizes

    def content(self, with_masks: bool = False) -> dict[str, Any]:
        """What `load_coco` reads from the annotations, as far as evaluation needs it; it lists all
        images and boxes of the file, and of boxes with a mask the `segmentation` as compressed RLE
        if that is asked for.

        Raises:
            DataError: a mask cannot be used, see `open_masks`.
        """
        content = self.coco.as_dict(self.crowd == "keep")
        if with_masks:
            add_masks(content, open_masks(self.annotations, self.coco))
        return content


def fill_sizes(
    directory: str | Path, files: Sequence[str], sizes: np.ndarray, reading: ImageReading
) -> tuple[np.ndarray, int]:
    """(N, 2) (height, width) of all images, unknown ones from the files' headers, and how many
    these are.

    Raises:
        DataError: a file is unusable, whatever `reading` says of such files: without a size its
            boxes cannot be checked.
    """
    unknown = (sizes == 0).any(axis=1).nonzero()[0]
    if not len(unknown):
        return sizes, 0
    reading = replace(reading, on_bad_image="error")
    checked = check_images(directory, [files[image] for image in unknown.tolist()], reading)
    filled = sizes.copy()
    filled[unknown] = checked.sizes
    return filled, len(unknown)


@dataclass
class _Found:
    """What there is in records."""

    with_boxes: np.ndarray  # (N,) bool, whether an image has a box that is used
    per_class: np.ndarray  # (K,) how many boxes are used
    bad: int = 0
    clipped: int = 0
    corners: int = 0
    largest: float = 0.0  # coordinate of a box that is used
    masks: int = 0  # boxes that are used and have one


def _look_through(records: Records, annotations: str | Path, bad_boxes: str) -> _Found:
    """Judge all boxes.

    Raises:
        DataError: a box cannot be used, and `bad_boxes` is `error`.
    """
    classes = len(records.coco.category_ids)
    found = _Found(np.zeros(len(records), bool), np.zeros(classes, np.int64))
    for block in records.blocks():
        judged, counted = block.judged, block.used | ~block.judged.usable
        if not records.keep_crowd:
            counted &= ~block.boxes.crowd
        bad = counted & ~judged.usable
        if bad_boxes == "error" and bad.any():
            raise _bad_box(records, block, int(bad.argmax()), annotations)
        found.bad += int(bad.sum())
        found.clipped += int((judged.clipped & counted).sum())
        found.corners += int((judged.like_corners & counted).sum())
        found.with_boxes[block.places] = block.used_counts > 0
        found.per_class += np.bincount(block.labels, minlength=classes)
        found.largest = max(found.largest, block.corners.max(initial=0).item())
        if records.masks is not None:
            found.masks += int((records.masks.lengths(block.rows[block.used]) > 0).sum())
    return found


def _bad_box(records: Records, block: Block, row: int, annotations: str | Path) -> DataError:
    place = block.places[int(np.searchsorted(block.counts.cumsum(), row, "right"))]
    before = row - int(block.counts[: place - block.places.start].sum())
    number = int(records.coco.starts[records.images[place]]) + before
    bbox = [int(v) if v == int(v) else v for v in block.boxes.xywh[row].tolist()]
    problem = box_problem(bbox, *records.sizes[place].tolist())
    box_id = records.coco.box_ids(slice(number, number + 1))[0]
    return DataError(
        f"{annotations}: the box {bbox} of annotation {box_id} {problem}; correct it, or set "
        "data.bad_boxes=drop to leave such boxes out"
    )


def _renamed(names: Sequence[str], files: Sequence[str]) -> dict[str, Any]:
    """The names that mean a file of another name, for `Contents`."""
    pairs = [pair for pair in zip(names, files, strict=True) if pair[0] != pair[1]]
    return {"renamed": len(pairs), "example": pairs[0] if pairs else ("", "")}


def _oddities(
    files: Sequence[str], per_class: np.ndarray, categories: Categories
) -> dict[str, Any]:
    """What is worth a look, for `Contents`."""
    per_name, per_file = Counter(categories.names), Counter(files)
    return {
        "shared_files": sum(number > 1 for number in per_file.values()),
        "unused": tuple(
            n for n, number in zip(categories.names, per_class, strict=True) if not number
        ),
        "same_names": tuple(name for name, number in per_name.items() if number > 1),
    }
