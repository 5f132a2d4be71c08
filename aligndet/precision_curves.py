"""Precision over recall of each class, at IoU 0.5, as COCO's evaluation has it."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable, Mapping
from typing import Any

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from aligndet.coco_scores import numbered, usable_annotations
from data.coco import read_categories


def precision_curves(
    annotations: Mapping[str, Any], results: Iterable[Mapping[str, Any]]
) -> dict[str, list[tuple[float, float]]]:
    """For each class by name, (recall, precision) at 101 recalls from 0 to 1; precision is the
    highest at this recall or a higher one. Empty for a class without objects.

    Args:
        annotations: a COCO JSON.
        results: COCO results entries.

    Raises:
        ValueError: a result is for an image that is not listed.
    """
    names = read_categories(annotations).names
    dataset, entries = numbered(annotations, usable_annotations(annotations), results)
    if not entries:
        return {name: [] for name in names}
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = dataset
        truth.createIndex()
        scorer = COCOeval(truth, truth.loadRes(entries), "bbox")
        scorer.params.iouThrs = scorer.params.iouThrs[:1]
        scorer.params.areaRng, scorer.params.areaRngLbl = scorer.params.areaRng[:1], ["all"]
        scorer.params.maxDets = scorer.params.maxDets[-1:]
        scorer.evaluate()
        scorer.accumulate()
    precision = scorer.eval["precision"][0, :, :, 0, 0]  # (101 recalls, K); -1 without objects
    recalls = scorer.params.recThrs
    return {
        name: [(float(r), float(p)) for r, p in zip(recalls, values, strict=True) if p >= 0]
        for name, values in zip(names, precision.T, strict=True)
    }
