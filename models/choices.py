"""One error message for every "this name is not one of those"."""

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
    """The choice that resembles `value` most, if any does, and all of them."""
    names = [str(choice) for choice in choices]
    close = get_close_matches(str(value), names, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    return f"{hint}valid: {', '.join(names)}"
