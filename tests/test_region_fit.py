"""How well regions fit objects, worked out by hand."""

from __future__ import annotations

import math

import pytest

from experiments.region_fit import region_fit


def rectangle(left, top, width, height):
    right, bottom = left + width, top + height
    return [[left, top, right, top, right, bottom, left, bottom]]


def content(file, entries):
    return {
        "images": [{"id": 1, "file_name": file, "width": 60, "height": 40}],
        "annotations": [
            {"id": n, "image_id": 1, "category_id": 1, "bbox": box, "segmentation": mask}
            for n, (box, mask) in enumerate(entries, 1)
        ],
    }


def test_by_hand():
    """Two objects of 10 x 10. Of four regions one is the first object, one has its box but half of
    its pixels, one overlaps it by a third, one is elsewhere."""
    first, second = [0, 0, 10, 10], [40, 20, 10, 10]
    labels = content("1.png", [(first, rectangle(*first)), (second, rectangle(*second))])
    half = rectangle(0, 0, 10, 5)
    moved, away = [5, 0, 10, 10], [20, 20, 10, 10]
    regions = [(first, half), (first, rectangle(*first))]
    regions += [(box, rectangle(*box)) for box in (moved, away)]
    proposals = content("folder/1.png", regions)
    fit = region_fit(proposals, labels)
    assert fit == (4, 50.0, 50.0, pytest.approx(75.0), 50.0, 50.0)
    assert region_fit(proposals, labels, count=1)[:3] == (1, 100.0, 0.0)
    # Objects of an image in which no region was found count as missed; of one that is not listed,
    # they do not count.
    empty = {"id": 2, "file_name": "2.png", "width": 60, "height": 40}
    labels["images"].append(empty)
    labels["annotations"].append(labels["annotations"][0] | {"image_id": 2, "id": 3})
    assert region_fit(proposals, labels) == fit
    proposals["images"].append(empty)
    assert region_fit(proposals, labels)[:1] + region_fit(proposals, labels)[4:] == (
        4, pytest.approx(100 / 3), pytest.approx(100 / 3),
    )  # fmt: skip
    nothing = region_fit(content("x/1.png", regions[3:]), labels)
    assert nothing.on_object == 0.0
    assert math.isnan(nothing.close)
