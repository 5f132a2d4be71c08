"""The lines of the page, by hand."""

from __future__ import annotations

import torch

from aligndet import data_page
from aligndet.positives import detector_without_weights
from data.coco import Record
from tests.helpers.small_detectors import model_config


def record(boxes, height=64, width=64):
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return Record(1, "a.jpg", height, width, boxes, torch.zeros(len(boxes), dtype=torch.int64))


def test_classes_are_ranked_with_bars():
    lines = data_page.class_lines(["ant", "bee", "cow"], [1] * 40 + [0])
    assert lines[0] == "bee        40 " + "#" * 40
    assert lines[1] == "ant         1 #"
    assert lines[2] == "cow         0"
    assert lines[3] == "without a box: 1 (cow)"


def test_many_classes_fit_on_the_page():
    names = [f"class {number}" for number in range(80)]
    labels = [label for label in range(80) for _ in range(80 - label)]
    lines = data_page.class_lines(names, labels)
    assert len(lines) == data_page.CLASSES + 1
    assert lines[-1].endswith("68 more, the rarest: class 77 3, class 78 2, class 79 1")


def test_no_boxes_at_all():
    assert data_page.class_lines(["ant"], []) == ["ant         0", "without a box: 1 (ant)"]
    assert data_page.class_lines([], []) == []


def test_sizes():
    lines = data_page.size_lines([(100, 200), (50, 50), (400, 100)], (50, 100), 200)
    assert lines == [
        "image files: 50 x 50, 200 x 100, 100 x 400 (width x height)",
        "as the network sees them, short side 50: 50 x 50, 100 x 50, 50 x 200 (width x height); "
        "scaled by 0.50 to 1.00",
        "as the network sees them, short side 100: 100 x 100, 50 x 200, 200 x 100 (width x height)"
        "; scaled by 0.50 to 2.00",
    ]
    assert data_page.size_lines([(50, 60)]) == ["image files: 60 x 50 (width x height)"]


def test_boxes_per_image():
    assert data_page.per_image_line([3, 0, 8], "boxes") == "boxes per image: 0 to 8, median 3"


def test_positives_by_box_size():
    """FCOS's points of stride 8 are at 4, 12, ... px; the images are enlarged twice."""
    detector = detector_without_weights(model_config("fcos"), num_classes=1)
    records = [
        record([[0, 0, 8, 8], [2.5, 2.5, 5.5, 5.5]], 32, 32),  # seen: 16 px with 4 points, 6 px
        record([]),
        record([[8.5, 0.5, 11.5, 3.5]], 32, 32),  # seen: 6 px with one point
    ]
    lines = data_page.positives_lines(detector, "fcos", records, (64,), 64)
    assert lines[0].startswith("positives (points) per box")
    assert [line.split() for line in lines[2:]][:2] == [
        ["<", "8", "2", "0.5", "1", "(50%)"],
        ["16-32", "1", "4.0", "0", "(0%)"],
    ]
    assert lines[-1].startswith("1 of 3 boxes have no positive")
    limited = data_page.positives_lines(detector, "fcos", records, (64,), 64, limit=1)
    assert not limited[-1].startswith("1 of")
    assert data_page.positives_lines(detector, "fcos", [record([])], (64,), 64) == []


def test_large_datasets_are_sampled():
    detector = detector_without_weights(model_config("fcos"), num_classes=1)
    records = [record([[0, 0, 16, 16]])] * (data_page.SAMPLE + 1)
    lines = data_page.positives_lines(detector, "fcos", records, (64,), 64)
    assert f"({data_page.SAMPLE:,} images, drawn at random)" in lines[0]
    assert lines[2].split()[1] == f"{data_page.SAMPLE:,}"


def test_problems_that_are_alike_are_summed_up():
    alike = [f"photos/{n}.jpg: image is missing; restore it" for n in range(9)]
    boxes = [f"train.json: the box [{n}, 0, 0, 5] of annotation {n} has no area" for n in range(2)]
    lines = data_page.problem_lines([*alike, *boxes, "train.json: not JSON"])
    assert lines == [
        *[f"- {problem}" for problem in alike[:5]],
        "  and 4 more like it",
        *[f"- {problem}" for problem in boxes],
        "- train.json: not JSON",
    ]
