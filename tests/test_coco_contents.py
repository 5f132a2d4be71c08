"""The sentences about a dataset: nothing about what did not happen, warnings for what is odd."""

from __future__ import annotations

import pytest

from data.coco_contents import Contents

LINE = "449 images, 3,329 boxes, 7 classes"


def lines(**counts):
    found = Contents(images=449, boxes=3329, classes=7, **counts).lines()
    assert found[0] == LINE
    assert all("\n" not in line for line in found)
    return found[1:]


def test_nothing_to_say_about_a_clean_file():
    assert lines() == []
    assert Contents(1, 1, 1).lines() == ["1 image, 1 box, 1 class"]


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        (
            {"crowds": 12, "bad_boxes": 1, "empty_images": 3, "skip_empty": True},
            [
                "left out: 12 crowd boxes, 1 box without area or outside the image, "
                "3 images without a box"
            ],
        ),
        ({"empty_images": 1}, ["without a box: 1 image"]),
        ({"unused": ("a",)}, ["without a box: 1 class, 'a'"]),
        (
            {"unused": tuple("abcde")},
            ["without a box: 5 classes, 'a', 'b', 'c' and 2 more"],
        ),
        (
            {"areas": 1, "polygons": 2000, "renamed": 2, "example": ("x\\a.png", "x/a.png")},
            [
                "corrected: 1 area (from the box), 2,000 boxes (from the polygons), "
                "2 file names (x\\a.png is x/a.png)"
            ],
        ),
        (
            {"clipped": 2},
            ["corrected: 2 boxes that stick out of their image (clipped)"],
        ),
        (
            {"renamed": 1, "example": ("a\x1b[31m\n.png", "a.png")},
            ["corrected: 1 file name (a\\x1b[31m\\n.png is a.png)"],
        ),
        (
            {"sizes": 1, "kept_crowds": 1, "repeated_entries": 1, "annotation_ids": 9},
            [
                "corrected: 1 image size (from the file), 1 crowd box (now an ordinary one), "
                "1 entry listed twice, 9 annotation ids (numbered anew)"
            ],
        ),
    ],
)
def test_what_was_left_out_and_corrected(counts, expected):
    assert lines(**counts) == expected


def test_many_boxes_left_out_are_a_warning():
    assert lines(crowds=1109) == ["left out: 1,109 crowd boxes"]  # a quarter
    first, second = lines(crowds=1000, bad_boxes=110)
    assert first == (
        "WARNING: 1,110 of 4,439 boxes are left out; data.crowd=keep uses crowd boxes like any "
        "other"
    )
    assert second.startswith("left out: 1,000 crowd boxes, 110 boxes without area")
    assert lines(bad_boxes=1110)[0] == "WARNING: 1,110 of 4,439 boxes are left out"


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ({"same_names": ("dog",)}, "several classes are called 'dog'"),
        ({"shared_files": 1}, "1 file listed as several images"),
        ({"repeated_boxes": 2}, "2 boxes listed again"),
        ({"corners": 833}, "833 of 3,329 boxes reach far out of their image; 'bbox' must be"),
    ],
)
def test_oddities_are_warnings(counts, words):
    (line,) = lines(**counts)
    assert line.startswith(f"WARNING: {words}")


def test_some_boxes_that_stick_out_are_no_oddity():
    assert lines(corners=832) == []
