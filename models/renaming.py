"""Names of weights, from one layout to another.

A map is a tuple of patterns of their names, each with our name: a replacement as `re.sub` takes it,
or a function of the match.
"""

from __future__ import annotations

import re
from collections.abc import Callable

Names = tuple[tuple[str, str | Callable[[re.Match], str]], ...]


def rename(key: str, names: Names) -> str | None:
    """`key` rewritten by the first pattern that matches all of it; None if there is none."""
    for pattern, ours in names:
        match = re.fullmatch(pattern, key)
        if match:
            return ours(match) if callable(ours) else match.expand(ours)
    return None
