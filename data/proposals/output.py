"""Write what `python -m data.proposals` leaves: the COCO JSON, and a list of bad images.

Legend: P proposals.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from tqdm import tqdm

from data.atomic_files import open_atomic
from data.box_columns import BoxColumns, Values
from data.coco_file import keep_packed
from data.coco_masks import MaskColumns
from data.coco_packing import write_packed
from data.json_checksum import ChecksumWriter
from data.plain_text import printable, say
from data.proposals.workers import Bad

CATEGORIES = [{"id": 1, "name": "object"}]
NAMED = 10  # bad images on the screen; if there are more, a file lists all


def write_proposals(
    images: Sequence[dict[str, Any]],
    boxes_of: Callable[[str], np.ndarray],
    output: Path,
    info: dict[str, Any],
    packed: bool = False,
    masks_of: Callable[[str], Sequence[bytes] | None] | None = None,
) -> int:
    """Write a COCO file all or nothing; only one image's boxes are in memory at a time.

    Args:
        images: complete COCO entries.
        boxes_of: gives (P, 4) float64 xyxy boxes in pixels for a file name, best first.
        output: file to write.
        info: how it was made.
        packed: write the packed form instead of JSON (`data.packed_coco`); a large JSON gets it
            as well, beside it.
        masks_of: gives the masks of the same boxes, as in `Job`; None: boxes have none.

    Returns:
        The number of boxes.
    """
    found = (
        objects(xywh_of(boxes_of(name)), None if masks_of is None else masks_of(name))
        for name in (image["file_name"] for image in images)
    )
    return write_boxes(images, found, CATEGORIES, output, info, packed, masks_of is not None)


class Found(NamedTuple):
    """The boxes of one image, best first."""

    xywh: np.ndarray  # (P, 4) float64, in pixels
    category_ids: np.ndarray  # (P,) int64
    masks: Sequence[bytes] | None = None  # of the boxes, as in `Job`


def objects(xywh: np.ndarray, masks: Sequence[bytes] | None = None) -> Found:
    """Boxes that are all of the one category."""
    return Found(xywh, np.ones(len(xywh), np.int64), masks)


def write_boxes(
    images: Sequence[dict[str, Any]],
    boxes_of_images: Iterable[Found],
    categories: Sequence[dict[str, Any]],
    output: Path,
    info: dict[str, Any],
    packed: bool = False,
    masks: bool = False,
) -> int:
    """The same with categories.

    Args:
        images: complete COCO entries.
        boxes_of_images: one for each of them.
        categories: COCO entries, in the order of their ids.
        output, info, packed: see `write_proposals`.
        masks: whether the boxes have masks.
    """
    columns, mask_columns = BoxColumns(), MaskColumns()

    def write(file: IO[bytes], source: dict[str, Any] | None = None) -> None:
        write_masks = mask_columns.write if masks else None
        write_packed(file, images, categories, columns, info, source=source, write_more=write_masks)

    def boxes() -> Iterator[dict[str, Any]]:
        bar = tqdm(images, desc="writing", unit="image", delay=2, leave=False)
        for place, (image, found) in enumerate(zip(bar, boxes_of_images, strict=True)):
            columns.add(values_of(image["id"], found, len(columns)))
            for mask in found.masks or ():
                mask_columns.add(place, mask)
            size = (image["height"], image["width"])
            yield from with_masks(annotations_of(image["id"], found), size, found.masks)

    if packed:
        for _ in boxes():
            pass
        with open_atomic(output, binary=True) as file:
            write(file)
        return len(columns)
    with open_atomic(output) as opened:
        _write_json(opened, images, boxes(), categories, info)
    keep_packed(output, write)
    return len(columns)


def _write_json(
    opened: IO[str],
    images: Sequence[dict[str, Any]],
    annotations: Iterable[dict[str, Any]],
    categories: Sequence[dict[str, Any]],
    info: dict[str, Any],
) -> None:
    file = ChecksumWriter(opened)
    file.write(f'{{"info": {json.dumps(info)}, "images": {json.dumps(images)}, ')
    file.write('"annotations": [')
    for number, annotation in enumerate(annotations, start=1):
        file.write(", " if number > 1 else "")
        file.write(json.dumps({"id": number, **annotation}))
    file.write(f'], "categories": {json.dumps(categories)}')
    file.end()


def xywh_of(boxes: np.ndarray) -> np.ndarray:
    """Boxes (P, 4) xyxy as they are written, xywh with sides of two decimals."""
    return np.concatenate([boxes[:, :2], (boxes[:, 2:] - boxes[:, :2]).round(2)], axis=1)


def annotations_of(image_id: int | str, found: Found) -> Iterator[dict[str, Any]]:
    """COCO annotations, without `id` and masks, of an image's boxes."""
    rows = zip(found.xywh.tolist(), found.category_ids.tolist(), strict=True)
    for rank, ((x, y, w, h), category) in enumerate(rows):
        yield {
            "image_id": image_id,
            "category_id": category,
            "bbox": [x, y, w, h],
            "area": round(w * h, 2),
            "iscrowd": 0,
            "score": round(1 - rank / len(found.xywh), 6),
        }


def with_masks(
    annotations: Iterable[dict[str, Any]], size: tuple[int, int], masks: Sequence[bytes] | None
) -> Iterator[dict[str, Any]]:
    """The annotations of an image of `size` (height, width) with their masks as `segmentation`."""
    if masks is None:
        yield from annotations
        return
    for annotation, mask in zip(annotations, masks, strict=True):
        if mask:
            annotation["segmentation"] = {"size": list(size), "counts": mask.decode("ascii")}
        yield annotation


def values_of(image_id: int | str, found: Found, before: int) -> Values:
    """The same as columns.

    Args:
        image_id: of the boxes.
        found: the boxes.
        before: how many boxes come before them.
    """
    xywh, number = found.xywh, len(found.xywh)
    return Values(
        [image_id] * number,
        found.category_ids.tolist(),
        xywh,
        np.zeros(number, bool),
        (xywh[:, 2] * xywh[:, 3]).round(2),
        np.arange(before, before + number) + 1,
    )


def report_bad(bad: Sequence[Bad], total: int, output: Path, skip: bool) -> None:
    """Name unusable images on stderr; if there are many, list all in `OUTPUT.bad.txt`."""
    listing = output.with_name(f"{output.name}.bad.txt")
    listing.unlink(missing_ok=True)  # of an earlier run
    if not bad:
        return
    sentence = f"{len(bad):,} of {total:,} images can't be used and are left out"
    if skip:
        print(f"warning: {sentence}:", file=sys.stderr)
    else:
        print(
            f"error: {sentence}; mend them and run the command again, which searches only what is "
            "missing, or accept it with --skip-bad:",
            file=sys.stderr,
        )
    for image in bad[:NAMED]:
        say(f"  {image.reason}", sys.stderr)
    if len(bad) > NAMED:
        with open_atomic(listing) as file:
            file.writelines(f"{printable(image.reason)}\n" for image in bad)
        print(f"  and {len(bad) - NAMED:,} more; {listing} lists all", file=sys.stderr)
