"""Ids of COCO files: whole numbers or text, and found again when a tool wrote them differently.

Exports from tables write `1.0` or `"1"` where the list of images says `1`.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import Any

Id = int | str


def canonical_id(value: Any) -> Id | None:
    """An id as an int or text; None if it is neither of them, nor a float without a fraction."""
    if isinstance(value, bool):  # equals 0 or 1 in Python
        return None
    if isinstance(value, (int, str)):
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return None


def id_order(value: Id) -> tuple[bool, Id]:
    """Sort key for ids: whole numbers first, then text."""
    return isinstance(value, str), value


class ListedIds:
    """Finds the id that a reference means.

    Args:
        ids: canonical ids, each once.
    """

    def __init__(self, ids: Iterable[Id]) -> None:
        self.ids = frozenset(ids)

    def find(self, value: Any) -> Id | None:
        """The listed id that equals `value`; else the only one that is the same number or text
        once both are written as text (`"7"`, `"007"` and `7.0` find `7`); else None."""
        wanted = canonical_id(value)
        if wanted is None or wanted in self.ids:
            return wanted
        return self._by_text.get(_text(wanted))

    @cached_property
    def _by_text(self) -> dict[str, Id | None]:
        found: dict[str, Id | None] = {}
        for listed in self.ids:
            text = _text(listed)
            found[text] = None if text in found else listed  # two of them: no guess
        return found


def _text(value: Id) -> str:
    text = str(value).strip()
    return (text.lstrip("0") or "0") if text.isdecimal() else text
