"""Rename weights from one layout to another, and count them for a summary.

A map is a tuple of pairs: a pattern for their names, and our name, as a replacement for `re.sub`
or a function of the match.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable

Names = tuple[tuple[str, str | Callable[[re.Match], str]], ...]


def rename(key: str, names: Names) -> str | None:
    """`key` rewritten by the first pattern that matches all of it; None if none does."""
    for pattern, ours in names:
        match = re.fullmatch(pattern, key)
        if match:
            return ours(match) if callable(ours) else match.expand(ours)
    return None


def count_modules(names: Iterable[str], module_of: Callable[[str], str]) -> str:
    """`layer1 (3), fc (2)`: how many tensors each module has, in order of first appearance.

    Args:
        names: of tensors.
        module_of: gives the module that a name is counted under.
    """
    return ", ".join(f"{m} ({count})" for m, count in Counter(map(module_of, names)).items())
