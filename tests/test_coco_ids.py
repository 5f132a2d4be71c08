"""Ids: what is one, their order, and references that are written differently."""

from __future__ import annotations

import pytest

from data.coco_ids import ListedIds, canonical_id, id_order


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (7, 7),
        (0, 0),
        (-1, -1),
        (7.0, 7),
        (1e300, int(1e300)),
        (10**400, 10**400),
        ("7", "7"),
        ("", ""),
        (7.5, None),
        (float("nan"), None),
        (float("inf"), None),
        (True, None),
        (False, None),
        (None, None),
        ([7], None),
        ({}, None),
    ],
)
def test_what_is_an_id(value, expected):
    found = canonical_id(value)
    assert (type(found), found) == (type(expected), expected)


def test_numbers_come_before_text():
    assert sorted(["b", 10, "a", 9, -1, "1"], key=id_order) == [-1, 9, 10, "1", "a", "b"]


@pytest.mark.parametrize(
    ("listed", "value", "expected"),
    [
        ([1, 2], 1, 1),
        ([1, 2], 1.0, 1),
        ([1, 2], "1", 1),
        ([1, 2], " 1 ", 1),
        ([1, 2], "001", 1),
        ([0, 2], "000", 0),
        ([1, 2], True, None),  # equals 1 in Python
        ([1, 2], 3, None),
        ([1, 2], "one", None),
        (["1", "2"], 1, "1"),
        (["01", "2"], 1, "01"),
        ([1, "1"], 1, 1),  # both are there: each is itself
        ([1, "1"], "1", "1"),
        ([1, "1"], "01", None),  # fits both
        (["1", "01"], 1, None),
        (["a", "b"], "a", "a"),
        (["-1"], -1, "-1"),
        (["²"], 2, None),  # a digit, but no number
        ([10**400], str(10**400), 10**400),
    ],
)
def test_references(listed, value, expected):
    found = ListedIds(listed).find(value)
    assert (type(found), found) == (type(expected), expected)
