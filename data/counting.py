"""Numbers with their nouns, for sentences."""

from __future__ import annotations

from collections.abc import Sequence


def count(number: int, one: str, many: str | None = None) -> str:
    """Such as `1 box`, `2,000 boxes`; `many` is the plural, unless it ends in s or es."""
    plural = many or one + ("es" if one.endswith(("x", "s")) else "s")
    return f"{number:,} {one if number == 1 else plural}"


def more_like_it(files: int) -> str:
    """What follows a message about one file if there are more."""
    return f" (and {count(files, 'more file')} like it)" if files else ""


def listing(parts: Sequence[tuple[int, str, str]]) -> str:
    """The counts that are not 0, each with its noun in the singular and the plural."""
    return ", ".join(count(*part) for part in parts if part[0])


def names(of: Sequence[str], most: int = 3) -> str:
    """The first few names, and how many more there are."""
    shown = ", ".join(map(repr, of[:most]))
    return shown + (f" and {len(of) - most:,} more" if len(of) > most else "")
