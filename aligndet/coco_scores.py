"""One run of pycocotools: the entries as it needs them, and what it makes of them."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from data.coco import read_categories
from data.coco_boxes import box_problem, part_inside

LARGEST_AREA = 1e10  # square pixels; COCO's evaluation leaves out larger objects


class Scores(NamedTuple):
    """AP in percent, None where there is no object to find."""

    overall: list[float | None]  # AP, AP50, AP75, APs, APm, APl: the mean over classes
    per_class: list[float | None]  # AP of each class, in the order of the ids
    objects: list[int]  # to find of each class, crowds left out


def pycocotools_scores(dataset: dict[str, Any], results: list[dict[str, Any]], kind: str) -> Scores:
    """What pycocotools makes of numbered entries.

    Args:
        dataset, results: see `numbered`; pycocotools changes their entries.
        kind: `bbox` or `segm`.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = dataset
        truth.createIndex()
        found = truth.loadRes(results) if results else _none_found(truth)
        scorer = COCOeval(truth, found, kind)
        scorer.evaluate()
        scorer.accumulate()
        scorer.summarize()
    numbers = scorer.params.catIds  # in the order of the ids
    per_class = map(_class_precision, np.moveaxis(scorer.eval["precision"], 2, 0))
    objects = (len(truth.getAnnIds(catIds=[number], iscrowd=False)) for number in numbers)
    return Scores(list(map(_percent, scorer.stats[:6])), list(per_class), list(objects))


def usable_annotations(annotations: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The annotations of a COCO JSON whose boxes something can find."""
    sizes = stated_sizes(annotations)
    return [
        entry
        for entry in annotations["annotations"]
        if box_problem(entry["bbox"], *sizes[entry["image_id"]]) is None
    ]


def stated_sizes(annotations: Mapping[str, Any]) -> dict[Any, tuple[int | None, int | None]]:
    """(height, width) of each image of a COCO JSON by its id; None where unknown."""
    return {entry["id"]: (entry["height"], entry["width"]) for entry in annotations["images"]}


def numbered(
    annotations: Mapping[str, Any],
    usable: Sequence[Mapping[str, Any]],
    results: Iterable[Mapping[str, Any]],
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Copies with images, categories and annotations numbered from 1, categories in the order of
    the labels: pycocotools sorts ids, keeps them in float64 and reads 0 as none.

    Args:
        annotations: a COCO JSON.
        usable: those of its annotations that are scored.
        results: COCO results entries.

    Raises:
        ValueError: a result is for an image that is not listed.
    """
    images = {entry["id"]: number for number, entry in enumerate(annotations["images"], start=1)}
    categories = {i: n for n, i in enumerate(read_categories(annotations).ids, start=1)}
    sizes = stated_sizes(annotations)
    dataset = {
        "info": {},
        "images": [
            {"id": images[i], "height": height, "width": width}
            for i, (height, width) in sizes.items()
        ],
        "categories": [{"id": number} for number in categories.values()],
        "annotations": [
            {
                "id": number,
                "image_id": images[entry["image_id"]],
                "category_id": categories[entry["category_id"]],
                "bbox": part_inside(entry["bbox"], *sizes[entry["image_id"]]),
                "area": min(entry.get("area", entry["bbox"][2] * entry["bbox"][3]), LARGEST_AREA),
                "iscrowd": entry.get("iscrowd", 0),
            }
            for number, entry in enumerate(usable, start=1)
        ],
    }
    return dataset, [_numbered_result(entry, images, categories) for entry in results]


def _numbered_result(
    entry: Mapping[str, Any], images: Mapping[Any, int], categories: Mapping[Any, int]
) -> dict[str, Any]:
    if entry["image_id"] not in images:
        raise ValueError(
            f"a result has image_id {entry['image_id']!r}, which the annotations do not list; "
            "give results for the same images"
        )
    number = categories.get(entry["category_id"], 0)  # of no listed class: it is not scored
    return {**entry, "image_id": images[entry["image_id"]], "category_id": number}


def _class_precision(precision: np.ndarray) -> float | None:
    """AP of a class from its precision (IoU thresholds, recalls, area ranges, maximal numbers)."""
    values = precision[:, :, 0, -1]  # all areas, 100 detections: as in COCO's AP
    return _percent(values.mean() if (values > -1).all() else -1.0)


def _percent(value: float) -> float | None:
    """pycocotools writes -1 where there is no object."""
    return 100.0 * float(value) if value >= 0 else None


def _none_found(truth: COCO) -> COCO:
    """An empty result, which `COCO.loadRes` cannot make."""
    found = COCO()
    found.dataset = {**truth.dataset, "annotations": []}
    found.createIndex()
    return found
