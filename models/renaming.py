"""Names of weights: from one layout to another, and counted for a summary.

A map is a tuple of patterns of their names, each with our name: a replacement as `re.sub` takes it,
or a function of the match.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable

Names = tuple[tuple[str, str | Callable[[re.Match], str]], ...]


def rename(key: str, names: Names) -> str | None:
    """`key` rewritten by the first pattern that matches all of it; None if there is none."""
    for pattern, ours in names:
        match = re.fullmatch(pattern, key)
        if match:
            return ours(match) if callable(ours) else match.expand(ours)
    return None


def count_modules(names: Iterable[str], module_of: Callable[[str], str]) -> str:
    """`layer1 (3), fc (2)`: how many tensors each module has, in the order they come in.

    Args:
        names: of tensors.
        module_of: the module that a name is counted for.
    """
    return ", ".join(f"{m} ({count})" for m, count in Counter(map(module_of, names)).items())
