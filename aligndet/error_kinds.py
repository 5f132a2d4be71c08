"""Which of a detector's detections are right, and what is wrong with the others, as TIDE has it
(Bolya et al. 2020, section 2).

A detection is right if it is the surest one that overlaps an object of its class by the IoU t that
is asked for, or more. Any other is an error of the first kind that fits:

    location    its best object of its class overlaps by 0.1 to t
    class       an object of another class overlaps by t or more
    duplicate   an object of its class does, which a surer detection has
    background  no object overlaps by more than 0.1
    both        all else: wrong in class and in place

An object that no detection has, and that no error of class or location would have, is `missed`.

Legend: D detections of an image, the surest first; M its objects.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from pycocotools import mask as coco_mask

Entries: TypeAlias = "Sequence[Mapping[str, Any]]"  # of COCO, with classes numbered from 1

KINDS = ("class", "location", "both", "duplicate", "background", "missed")
CLASS, LOCATION, BOTH, DUPLICATE, BACKGROUND, _ = range(len(KINDS))
RIGHT = -1
NEAR = 0.1  # IoU up to which a detection has nothing to do with an object


class Columns(NamedTuple):
    """Detections (D or P) and objects (M) as columns; classes are numbers from 1."""

    score: np.ndarray  # (D,)
    label: np.ndarray  # (D,) class
    kind: np.ndarray  # (D,) of KINDS by its number, or RIGHT
    counted: np.ndarray  # (D,) bool: not in a crowd region, where a wrong one is ignored
    truth: np.ndarray  # (D,) object of its image that it is about, or -1
    mended: np.ndarray  # (D,) class that it has once it is mended and right; 0: it goes
    objects: np.ndarray  # (M,) class
    found: np.ndarray  # (M,) bool
    missed: np.ndarray  # (M,) bool


def judge(found: Entries, objects: Entries, crowds: Entries, key: str, iou: float) -> Columns:
    """Judge the detections of an image, which are sorted by score.

    Args:
        crowds: regions in which a detection that is wrong is not counted.
        key: `bbox` or `segmentation` (RLE), by which they overlap.
        iou: overlap that is asked for.
    """
    label, classes = _classes(found), _classes(objects)
    overlap = _overlaps(found, objects, key)  # (D, M)
    own = overlap * (label[:, None] == classes)
    other = overlap - own
    right, truth = _matched(own, iou)
    taken = np.zeros(len(objects), bool)
    taken[truth[right]] = True
    duplicate = own * taken
    kind = np.select(
        [
            right,
            (_most(own) >= NEAR) & (_most(own) <= iou),
            _most(other) >= iou,
            _most(duplicate) >= iou,
            _most(overlap) <= NEAR,
        ],
        [RIGHT, LOCATION, CLASS, DUPLICATE, BACKGROUND],
        BOTH,
    )
    for number, of_kind in ((LOCATION, own), (CLASS, other), (DUPLICATE, duplicate)):
        here = kind == number
        truth[here] = of_kind[here].argmax(1) if here.any() else -1
    # Of the errors that would have a free object once mended, the surest one gets it.
    claims = np.flatnonzero(np.isin(kind, (CLASS, LOCATION)))
    claims = claims[~taken[truth[claims]]]
    claimed, surest = np.unique(truth[claims], return_index=True)
    mended = np.zeros(len(found), np.int64)
    mended[claims[surest]] = classes[claimed]
    missed = ~taken
    missed[claimed] = False
    in_crowd = _overlaps(found, crowds, key, crowd=True) * (label[:, None] == _classes(crowds))
    counted = right | (_most(in_crowd) <= iou)
    score = np.array([entry["score"] for entry in found], np.float64)
    return Columns(score, label, kind, counted, truth, mended, classes, taken, missed)


def _matched(overlap: np.ndarray, iou: float) -> tuple[np.ndarray, np.ndarray]:
    """Whether each detection is right, and its object or -1: in the order of their scores, each
    takes the object that it overlaps most among those that are left."""
    overlap = overlap.copy()
    right, truth = np.zeros(len(overlap), bool), np.full(len(overlap), -1)
    for d in np.flatnonzero(_most(overlap) >= iou):
        best = overlap[d].argmax()
        if overlap[d, best] >= iou:
            right[d], truth[d] = True, best
            overlap[:, best] = 0.0
    return right, truth


def _overlaps(found: Entries, others: Entries, key: str, crowd: bool = False) -> np.ndarray:
    """IoU of detections (D) and regions (M); with `crowd`, the share of the detection inside."""
    if not found or not others:
        return np.zeros((len(found), len(others)))
    regions = [entry[key] for entry in others]
    return np.asarray(coco_mask.iou([e[key] for e in found], regions, [crowd] * len(regions)))


def _most(overlap: np.ndarray) -> np.ndarray:
    """The highest overlap of each detection, (D,); 0 where there is no object."""
    return overlap.max(axis=1, initial=0.0)


def _classes(entries: Entries) -> np.ndarray:
    return np.array([entry["category_id"] for entry in entries], np.int64)
