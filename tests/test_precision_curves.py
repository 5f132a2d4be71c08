"""Precision over recall, worked out by hand."""

from __future__ import annotations

import pytest

from aligndet.precision_curves import precision_curves

BOX = [10.0, 10, 20, 20]
AWAY = [60.0, 60, 20, 20]


def content(objects):
    """Images 1 to 4 of 100 px with the objects (image, category, box)."""
    return {
        "images": [{"id": n, "width": 100, "height": 100} for n in (1, 2, 3, 4)],
        "categories": [{"id": 5, "name": "cat"}, {"id": 9, "name": "dog"}],
        "annotations": [
            {"id": n, "image_id": i, "category_id": c, "bbox": b, "area": 400, "iscrowd": 0}
            for n, (i, c, b) in enumerate(objects, 1)
        ],
    }


def result(image, category, box, score):
    return {"image_id": image, "category_id": category, "bbox": box, "score": score}


def test_two_right_one_wrong_one_missed():
    """By score: right, wrong, right. Recall 1/3 at precision 1, 2/3 at 2/3, and no more."""
    truth = content([(1, 5, BOX), (2, 5, BOX), (3, 5, BOX)])
    found = [result(1, 5, BOX, 0.9), result(2, 5, AWAY, 0.8), result(3, 5, BOX, 0.7)]
    curve = dict(precision_curves(truth, found)["cat"])
    assert len(curve) == 101
    for recall, precision in curve.items():
        expected = 1.0 if recall <= 1 / 3 else 2 / 3 if recall <= 2 / 3 else 0.0
        assert precision == pytest.approx(expected), recall


def test_overlap_counts_from_half_on():
    truth = content([(1, 5, BOX)])
    half = [10.0, 10, 20, 10.01]
    less = [10.0, 10, 20, 9.9]
    assert dict(precision_curves(truth, [result(1, 5, half, 0.9)])["cat"])[1.0] == pytest.approx(
        1.0
    )
    assert dict(precision_curves(truth, [result(1, 5, less, 0.9)])["cat"])[0.0] == 0.0


def test_classes_without_objects_or_detections():
    truth = content([(1, 5, BOX)])
    assert precision_curves(truth, []) == {"cat": [], "dog": []}
    curves = precision_curves(truth, [result(1, 9, BOX, 0.9)])
    assert curves["dog"] == []  # no object: precision means nothing
    assert {p for _, p in curves["cat"]} == {0.0}
    with pytest.raises(ValueError, match="image_id 7"):
        precision_curves(truth, [result(7, 5, BOX, 0.9)])
