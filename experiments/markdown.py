"""Markdown that the report is made of."""

from __future__ import annotations

import re


def table(header: list[str], lines: list[list[str]]) -> list[str]:
    """A table."""
    rule = ["---"] * len(header)
    return [f"| {' | '.join(cells)} |" for cells in (header, rule, *lines)]


def anchor(heading: str) -> str:
    """The link target that renderers make of a heading."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")
