"""The wording of messages about a wrong value."""

from __future__ import annotations

import pytest

from models.checks import require_choice, require_range


def test_choices():
    require_choice("key", "a", ("a", "b"))
    with pytest.raises(ValueError, match="key is 'frist', which is unknown; did you mean first"):
        require_choice("key", "frist", ("first", "second"))


@pytest.mark.parametrize(
    ("value", "bounds"),
    [
        (1, {"least": 1}),
        (1.0, {"most": 1}),
        (0.5, {"above": 0, "below": 1}),
        (None, {"least": 1}),
    ],
)
def test_within_the_bounds(value, bounds):
    require_range("key", value, **bounds)


@pytest.mark.parametrize(
    ("value", "bounds", "words"),
    [
        (0, {"least": 1}, "key is 0; it must be at least 1"),
        (0.0, {"above": 0}, "key is 0.0; it must be above 0"),
        (1.5, {"least": 0, "most": 1}, "key is 1.5; it must be at least 0 and at most 1"),
        (1, {"above": 0, "below": 1}, "key is 1; it must be above 0 and below 1"),
        (float("nan"), {"least": 0}, "key is nan; it must be at least 0"),
    ],
)
def test_outside_the_bounds(value, bounds, words):
    with pytest.raises(ValueError, match=f"^{words}$"):
        require_range("key", value, **bounds)
