"""Numbers with their nouns."""

from __future__ import annotations

import pytest

from data.counting import count, listing, names


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((1, "image"), "1 image"),
        ((0, "image"), "0 images"),
        ((2000, "box"), "2,000 boxes"),
        ((2, "class"), "2 classes"),
        ((3, "person", "people"), "3 people"),
        ((1, "person", "people"), "1 person"),
    ],
)
def test_counts(arguments, text):
    assert count(*arguments) == text


def test_lists_leave_out_what_is_not_there():
    parts = [(2, "crowd box", "crowd boxes"), (0, "image", "images"), (1, "area", "areas")]
    assert listing(parts) == "2 crowd boxes, 1 area"
    assert names(["a", "b"]) == "'a', 'b'"
    assert names(["a", "b", "c", "d", "e"]) == "'a', 'b', 'c' and 2 more"
