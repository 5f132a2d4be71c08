"""What COCO's evaluation by masks takes: the labelled masks, whatever form they have in the file.

An object without a mask, in a file that has some, is neither asked for nor held against a detector:
its box counts as a crowd region, in which detections are ignored. The same holds for a mask without
a pixel in its image, which nothing can find. (pycocotools itself stops at an object without a mask,
and counts one without pixels as missed.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from aligndet.coco_scores import stated_sizes
from data.coco_json import name_of
from data.coco_values import show
from data.errors import DataError

NO_MASKS = "masks are not scored: the annotations have none ('segmentation')"

Entry = Mapping[str, Any]
Size = tuple[int, int]  # height, width


def truth_of_masks(
    dataset: Entry, annotations: Sequence[Entry], sizes: Mapping[Any, Size | None]
) -> dict[str, Any] | None:
    """A dataset to score masks against; None if there is no mask in it.

    Args:
        dataset: to score boxes against; its annotations are those of `annotations`, numbered anew.
        annotations: of a COCO JSON; `segmentation` is a list of polygons, or run lengths (RLE),
            compressed or not, of an image of its image's size.
        sizes: of the images, None where unknown, by the ids in `annotations`.

    Raises:
        DataError: a mask cannot be read, or has another size than its image.
    """
    objects, without = [], 0
    for numbered, entry in zip(dataset["annotations"], annotations, strict=True):
        size = sizes[entry["image_id"]] or _size_around(entry)
        mask = read_mask(entry, size)
        if mask is None:
            without += 1
            box = np.array([numbered["bbox"]], float)
            mask, numbered = coco_mask.frPyObjects(box, *size)[0], {**numbered, "iscrowd": 1}
        objects.append({**numbered, "segmentation": mask})
    return {**dataset, "annotations": objects} if without < len(objects) else None


def without_boxes(results: Sequence[Entry]) -> list[dict[str, Any]]:
    """COCO results by their masks alone: from a box, pycocotools would take the area of a detection
    (small, medium, large)."""
    return [{key: value for key, value in entry.items() if key != "bbox"} for entry in results]


def mask_sizes(annotations: Entry, results: Sequence[Entry]) -> dict[Any, Size | None]:
    """(height, width) of each image by its id: as stated, else as its detections' masks say, else
    None.

    Raises:
        ValueError: a result has no mask, or one of another size than its image.
    """
    sizes = {i: size if all(size) else None for i, size in stated_sizes(annotations).items()}
    for entry in results:
        if "segmentation" not in entry:
            raise ValueError(
                f"a result for image {entry['image_id']!r} has no 'segmentation', but others have; "
                "give results that all have masks, or none"
            )
        size = tuple(entry["segmentation"]["size"])
        sizes[entry["image_id"]] = known = sizes[entry["image_id"]] or size
        if size != known:
            raise ValueError(
                f"a result for image {entry['image_id']!r} has a mask of {size[1]} x {size[0]} "
                f"pixels, but the image has {known[1]} x {known[0]}; give masks of the image's size"
            )
    return sizes


def read_mask(annotation: Entry, size: Size) -> dict[str, Any] | None:
    """The mask of an annotation as compressed RLE; None if it has none, or none with a pixel.

    Raises:
        DataError: it cannot be read, or has another size.
    """
    value = annotation.get("segmentation")
    if not value:
        return None
    try:
        if isinstance(value, list):
            mask = _from_polygons(value, size)
        else:
            _check_size(annotation, value["size"], size)
            mask = _from_runs(value["counts"], size)
        pixels = int(coco_mask.area(mask)) if mask else 0
        if pixels > size[0] * size[1]:
            raise ValueError
    except (TypeError, ValueError, KeyError, OverflowError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{name_of(annotation)} has segmentation {show(value)}, which is neither polygons nor "
            "run lengths of all pixels (RLE); correct or remove it"
        ) from None
    return mask if pixels else None


def _from_polygons(value: list[Any], size: Size) -> dict[str, Any] | None:
    """Of lists of x and y in turn, or of points [x, y]; with fewer than 3 points they are empty."""
    is_one = not isinstance(value[0], list) or all(len(part) == 2 for part in value)
    arrays = [np.asarray(part, float).ravel() for part in ([value] if is_one else value)]
    if any(array.size % 2 or not np.isfinite(array).all() for array in arrays):
        raise ValueError
    parts = [array.tolist() for array in arrays if array.size >= 6]
    return coco_mask.merge(coco_mask.frPyObjects(parts, *size)) if parts else None


def _from_runs(counts: list[int] | str | bytes, size: Size) -> dict[str, Any]:
    """Of run lengths in a list, or compressed in a text."""
    mask = {"size": list(size), "counts": counts}
    if not isinstance(counts, list):
        return mask
    if sum(counts) != size[0] * size[1]:
        raise ValueError
    return coco_mask.frPyObjects(mask, *size)


def _check_size(annotation: Entry, stated: Sequence[int], size: Size) -> None:
    if tuple(stated) != tuple(size):
        height, width = stated
        raise DataError(
            f"{name_of(annotation)} has a mask of {width} x {height} pixels, but its image has "
            f"{size[1]} x {size[0]}; correct or remove it"
        )


def _size_around(annotation: Entry) -> Size:
    """Of an image of unknown size without detections: any will do that holds the mask."""
    value, (x, y, width, height) = annotation.get("segmentation"), annotation["bbox"]
    if isinstance(value, Mapping) and "size" in value:
        return tuple(value["size"])
    return max(1, math.ceil(y + height)), max(1, math.ceil(x + width))
