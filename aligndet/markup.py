"""Pieces of HTML that the sections of a page share."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

from aligndet.charts import COLOURS

LONG = 28  # characters


class Markup(str):
    """Text that is HTML already."""


def escaped(cell: Any) -> str:
    """A value as HTML."""
    return cell if isinstance(cell, Markup) else html.escape(str(cell))


def kept_together(cell: Any) -> Markup:
    """A value that is not broken into lines."""
    return Markup(f'<span class="together">{escaped(cell)}</span>')


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table that scrolls where the page is too narrow; the first column is text."""

    top = "".join(f"<th>{escaped(cell)}</th>" for cell in head)
    lines = "".join(
        "<tr>" + "".join(f"<td>{escaped(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f'<div class="wide"><table><tr>{top}</tr>{lines}</table></div>'


def value(text: str) -> Markup:
    """A value that may be long, such as a path, which is then broken anywhere."""
    return Markup(
        f'<span class="long">{escaped(text)}</span>' if len(text) > LONG else escaped(text)
    )


def figure(uri: str, caption: str) -> str:
    """A picture with its caption.

    Args:
        uri: a data URI.
    """
    caption = html.escape(caption)
    return f'<figure><img src="{uri}" alt="{caption}"><figcaption>{caption}</figcaption></figure>'


def bar(share: float, colour: int = 0) -> Markup:
    """A bar of a share, 0 to 1, of the longest one."""
    width = round(60 * max(0.0, min(1.0, share)), 1)
    drawn = f'<path class="line bar c{colour % COLOURS}" d="M0 6H{width}"/>' if width else ""
    return Markup(f'<svg viewBox="0 0 60 12" width="60" height="12">{drawn}</svg>')
