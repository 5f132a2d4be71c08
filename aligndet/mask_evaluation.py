"""What COCO's evaluation by masks takes: the labelled masks, whatever form they have in the file.

An object without a mask, in a file that has some, is neither asked for nor held against a detector:
its box counts as a crowd region, in which detections are ignored. The same holds for a mask without
a pixel in its image, which nothing can find. (pycocotools itself stops at an object without a mask,
and counts one without pixels as missed.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from aligndet.coco_scores import stated_sizes
from data.coco_json import name_of
from data.errors import DataError
from data.masks import encode

NO_MASKS = "masks are not scored: the annotations have none ('segmentation')"

Entry = Mapping[str, Any]
Size = tuple[int, int]  # height, width


def truth_of_masks(
    dataset: Entry, annotations: Sequence[Entry], sizes: Mapping[Any, Size | None]
) -> dict[str, Any] | None:
    """A dataset to score masks against; None if there is no mask in it.

    Args:
        dataset: to score boxes against; its annotations are those of `annotations`, numbered anew.
        annotations: of a COCO JSON; on `segmentation` see `data.masks.encode`.
        sizes: of the images, None where unknown, by the ids in `annotations`.

    Raises:
        DataError: a mask cannot be read, or has another size than its image.
    """
    objects, without = [], 0
    for numbered, entry in zip(dataset["annotations"], annotations, strict=True):
        size = sizes[entry["image_id"]]
        mask = read_mask(entry, size)
        if mask is None:
            without += 1
            # Without a size there are no detections, so that any will do.
            box, size = np.array([numbered["bbox"]], float), size or (1, 1)
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


def read_mask(annotation: Entry, size: Size | None) -> dict[str, Any] | None:
    """The mask of an annotation as compressed RLE; None if it has none, or none with a pixel.

    Raises:
        DataError: it cannot be read, has another size, or `size` is not known.
    """
    segmentation = annotation.get("segmentation")
    if not segmentation:
        return None
    try:
        if size is None:
            raise ValueError("needs the 'height' and 'width' of its image, which are not given")
        counts = encode(segmentation, *size)
    except ValueError as error:
        raise DataError(
            f"{name_of(annotation)}: its segmentation {error}; correct it, or remove it to leave "
            "the object without a mask"
        ) from None
    return {"size": list(size), "counts": counts} if counts else None
