"""Checks of config values; each kind of error has one wording."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def require_choice(key: str, value: object, choices: Iterable[object]) -> None:
    """Raise a ValueError that names `key` and the valid choices unless `value` is one of them."""
    choices = list(choices)
    if value in choices:
        return
    raise ValueError(f"{key} is {value!r}, which is unknown; {valid_choices(value, choices)}")


def valid_choices(value: object, choices: Iterable[object]) -> str:
    """List all choices, with a hint at the one that resembles `value` most, if any does."""
    names = [str(choice) for choice in choices]
    close = get_close_matches(str(value), names, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    return f"{hint}valid: {', '.join(names)}"


def require_range(
    key: str,
    value: float | None,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
) -> None:
    """Raise a ValueError that names `key` and the bounds unless `value` lies within them.

    Args:
        key: as the user writes it.
        value: None passes: it means a default, or "off".
        least, above, most, below: bounds; None is no bound. `least` and `most` themselves are
            allowed, `above` and `below` are not.
    """
    bounds = [
        ("at least", least, lambda bound: value >= bound),
        ("above", above, lambda bound: value > bound),
        ("at most", most, lambda bound: value <= bound),
        ("below", below, lambda bound: value < bound),
    ]
    given = [(words, bound, holds) for words, bound, holds in bounds if bound is not None]
    if value is None or all(holds(bound) for _, bound, holds in given):
        return
    wanted = " and ".join(f"{words} {bound:g}" for words, bound, _ in given)
    raise ValueError(f"{key} is {value}; it must be {wanted}")
