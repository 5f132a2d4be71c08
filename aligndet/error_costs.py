"""What each kind of a detector's errors costs: the AP gained if these alone were mended.

An error of class or location becomes right if it is the surest one that would have a free object;
every other detection of the kind goes; missed objects are not asked for (TIDE, Bolya et al. 2020).

Legend: P all detections.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from aligndet.error_kinds import KINDS, RIGHT, Columns

FALSE_POSITIVES, FALSE_NEGATIVES = "all false positives", "all false negatives"


def costs(all_: Columns) -> tuple[float | None, dict[str, float]]:
    """AP in percent, and the points of AP that each of KINDS costs, all wrong detections, and all
    objects that are not found; None and nothing if there is no object."""
    asked = np.bincount(all_.objects)  # objects of each class
    classes = np.flatnonzero(asked)
    if not len(classes):
        return None, {}
    right = all_.kind == RIGHT
    mean_ap = partial(_mean_ap, classes)
    ap = mean_ap(all_.score, all_.label, right, all_.counted, asked)
    cost = {}
    for number, name in enumerate(KINDS[:-1]):
        here = all_.kind == number
        mended = here & (all_.mended > 0)
        label = np.where(mended, all_.mended, all_.label)
        kept = np.where(here, mended, all_.counted)
        cost[name] = mean_ap(all_.score, label, right | mended, kept, asked) - ap
    found, missed = (
        np.bincount(all_.objects[which], minlength=len(asked))
        for which in (all_.found, all_.missed)
    )
    as_given = (all_.label, right, all_.counted)
    cost["missed"] = mean_ap(all_.score, *as_given, asked - missed) - ap
    # Mending one error can lower AP by a hair, since recall is read at 101 places.
    cost = {name: max(0.0, value) for name, value in cost.items()}
    cost[FALSE_POSITIVES] = mean_ap(right.astype(np.float64), *as_given, asked) - ap
    cost[FALSE_NEGATIVES] = mean_ap(all_.score, *as_given, found) - ap
    return ap, cost


def _mean_ap(
    classes: np.ndarray,
    score: np.ndarray,
    label: np.ndarray,
    right: np.ndarray,
    kept: np.ndarray,
    asked: np.ndarray,
) -> float:
    """Mean AP in percent of some classes.

    Args:
        classes: to take the mean over; those with nothing left to find and nothing found drop out.
        score, label, right, kept: (P,) of all detections; those not kept are left out.
        asked: objects of each class, by its number.
    """
    order = np.argsort(-score, kind="stable")
    order = order[kept[order]]
    values = []
    for number in classes:
        of_class = right[order[label[order] == number]]
        if len(of_class) or asked[number]:
            values.append(_average_precision(of_class, asked[number]))
    return 100.0 * float(np.mean(values)) if values else 0.0


def _average_precision(right: np.ndarray, objects: int) -> float:
    """AP, 0..1, of detections sorted by score, as COCO has it: the mean, over recalls of 0, 0.01,
    ..., 1, of the best precision at this recall or a higher one."""
    if not objects or not len(right):
        return 0.0
    found = right.cumsum()
    precision = found / np.arange(1, len(right) + 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    at = np.searchsorted(found / objects, np.arange(101) / 100, side="left")
    return float(np.append(precision, 0.0)[at].mean())
