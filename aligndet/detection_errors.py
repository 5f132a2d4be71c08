"""The errors of COCO results: of which kind each is, and what each kind costs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from aligndet.coco_scores import numbered, usable_annotations
from aligndet.error_costs import costs
from aligndet.error_kinds import KINDS, NEAR, RIGHT, Columns, Entries, judge
from aligndet.mask_evaluation import mask_sizes, truth_of_masks

MOST_DETECTIONS = 100  # of an image, the surest; as in COCO's AP


class Judged(NamedTuple):
    """A detection of an image, or an object that was missed."""

    entry: Mapping[str, Any]  # of the results, or of the annotations
    kind: str  # of KINDS, or `right`
    truth: Mapping[str, Any] | None  # the annotation that it is about


class Confusion(NamedTuple):
    """Objects of one class taken for another."""

    truth: str
    taken_for: str
    count: int
    score: float  # mean, 0..1


@dataclass(frozen=True)
class Errors:
    """A detector's errors at one IoU."""

    iou: float
    ap: float | None  # percent, at this IoU; None without an object
    cost: Mapping[str, float]  # AP, in points, of KINDS and of the two kinds of all errors
    count: Mapping[str, int]  # of KINDS
    images: Mapping[Any, Sequence[Judged]]  # by image id; what is in crowd regions is left out


def detection_errors(
    annotations: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    iou: float = 0.5,
    masks: bool = False,
) -> Errors:
    """The errors of COCO results.

    Args:
        annotations: a COCO JSON.
        results: COCO results entries; those of a class that is not listed are left out.
        iou: overlap that is asked for, above 0.1 and up to 1.
        masks: overlap of masks instead of boxes.

    Raises:
        ValueError: `iou` is out of range, a result is for an image that is not listed, or there are
            no masks.
    """
    if not NEAR < iou <= 1:
        raise ValueError(f"iou must be above {NEAR} and at most 1, not {iou}")
    images = _by_image(annotations, results, masks)
    key = "segmentation" if masks else "bbox"
    columns, judged = [], {}
    for image_id, (found, objects, crowds) in images.items():
        found = sorted(found, key=lambda pair: -pair[0]["score"])[:MOST_DETECTIONS]
        numbers = [[entry for entry, _ in pairs] for pairs in (found, objects, crowds)]
        columns.append(judge(*numbers, key, iou))
        given = ([entry for _, entry in pairs] for pairs in (found, objects))
        judged[image_id] = list(_judged(*given, columns[-1]))
    ap, cost = None, {}
    if columns:
        ap, cost = costs(Columns(*map(np.concatenate, zip(*columns, strict=True))))
    count = Counter(one.kind for of_image in judged.values() for one in of_image)
    return Errors(iou, ap, cost, {kind: count[kind] for kind in KINDS}, judged)


def confusions(errors: Errors, names: Mapping[Any, str]) -> list[Confusion]:
    """Which classes are taken for which, by the summed scores of these errors, the highest first.

    Args:
        names: of the classes by category id.
    """
    scores: dict[tuple[Any, Any], list[float]] = {}
    for entry, kind, truth in (one for of_image in errors.images.values() for one in of_image):
        if kind == "class":
            pair = truth["category_id"], entry["category_id"]
            scores.setdefault(pair, []).append(entry["score"])
    ordered = sorted(scores.items(), key=lambda item: -sum(item[1]))
    return [
        Confusion(names[truth], names[taken_for], len(of_pair), sum(of_pair) / len(of_pair))
        for (truth, taken_for), of_pair in ordered
    ]


def _by_image(
    annotations: Mapping[str, Any], results: Sequence[Mapping[str, Any]], masks: bool
) -> dict[Any, tuple[list[Any], list[Any], list[Any]]]:
    """Detections, objects and crowd regions of each image, by its id, as pairs of an entry that
    pycocotools can read, with classes numbered from 1, and the entry that was given."""
    usable = usable_annotations(annotations)
    dataset, entries = numbered(annotations, usable, results)
    if masks:
        dataset = truth_of_masks(dataset, usable, mask_sizes(annotations, results))
        if dataset is None:
            raise ValueError("the annotations have no masks ('segmentation'); compare boxes")
    images = {image["id"]: ([], [], []) for image in annotations["images"]}
    for entry, given in zip(entries, results, strict=True):
        if entry["category_id"]:  # 0: of no listed class
            images[given["image_id"]][0].append((entry, given))
    for entry, given in zip(dataset["annotations"], usable, strict=True):
        images[given["image_id"]][2 if entry["iscrowd"] else 1].append((entry, given))
    return images


def _judged(found: Entries, objects: Entries, columns: Columns) -> Iterator[Judged]:
    """What each entry of an image is, detections first."""
    for entry, kind, truth, counts in zip(
        found, columns.kind, columns.truth, columns.counted, strict=True
    ):
        if counts:
            name = "right" if kind == RIGHT else KINDS[kind]
            yield Judged(entry, name, objects[truth] if truth >= 0 else None)
    for entry, missed in zip(objects, columns.missed, strict=True):
        if missed:
            yield Judged(entry, "missed", entry)
