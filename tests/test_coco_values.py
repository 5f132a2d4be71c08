"""Values as tools write them."""

from __future__ import annotations

import pytest

from data.coco_values import box_around, read_flag, read_number, read_size, show

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1, 1),
        (-1.5, -1.5),
        ("1.5", 1.5),
        (" 2e1 ", 20),
        ("", None),
        ("a", None),
        ("nan", None),
        ("1,5", None),
        (NAN, None),
        (-INF, None),
        (10**400, None),
        (True, None),
        (None, None),
        ([1], None),
        (1e9, 1e9),
        (1.1e9, None),
    ],
)
def test_numbers(value, expected):
    assert read_number(value) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (640, 640),
        (640.0, 640),
        ("640", 640),
        (0, None),
        (-3, None),
        (0.5, None),
        (63.5, None),
        (None, None),
        (True, None),
        (10**400, None),
    ],
)
def test_sizes(value, expected):
    found = read_size(value)
    assert (type(found), found) == (type(expected), expected)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, 0),
        ("", 0),
        (NAN, 0),
        (0, 0),
        (False, 0),
        (0.0, 0),
        ("0", 0),
        ("no", 0),
        ("FALSE", 0),
        (1, 1),
        (True, 1),
        (1.0, 1),
        ("1", 1),
        (" Yes", 1),
        (2, None),
        (-1, None),
        (0.5, None),
        ("maybe", None),
        ([], None),
        ({}, None),
        (10**400, None),
    ],
)
def test_flags(value, expected):
    found = read_flag(value)
    assert (type(found), found) == (type(expected), expected)


@pytest.mark.parametrize(
    ("polygons", "expected"),
    [
        ([[1, 2, 21, 2, 11, 22]], [1, 2, 20, 20]),
        ([[1, 2, 3, 4], [-5, 9, 0.5, "7"]], [-5, 2, 8, 7]),
        ([1, 2, 3, 4], [1, 2, 2, 2]),
        ([[1, 2], [3, 4]], [1, 2, 2, 2]),
        ([[[1, 2], [3, 4]]], [1, 2, 2, 2]),
        ([[1, 2, 1, 2]], [1, 2, 0, 0]),  # a point: a box without area
        ([[[[1, 2], [3, 4]]]], None),  # more levels than any tool writes
        ([[1, 2]], None),
        ([[1, 2, 3]], None),
        ([[1, 2, 3, NAN]], None),
        ([], None),
        (None, None),
        ("1 2 3 4", None),
        ({"size": [4, 4], "counts": [0, 16]}, None),
    ],
)
def test_boxes_around_polygons(polygons, expected):
    assert box_around(polygons) == expected


def test_values_in_messages_are_short_and_in_one_line():
    assert show({"a": "ä\n"}) == '{"a": "ä\\n"}'
    assert show(10**400) == "1" + 79 * "0" + "..."
