"""Text that comes from files, made harmless for a terminal or a page.

File names and class names may hold anything: escape codes that recolour a terminal or set its
title, line breaks that fake a line of output, marks that reverse the order of what follows.
"""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Iterable
from typing import TextIO

JOINERS = "\u200c\u200d"  # format characters that scripts and emoji are written with
UNSAFE = ("Cc", "Cf", "Cs", "Zl", "Zp")  # control, format, half a character, line breaks


def printable(text: str) -> str:
    """The text in one line, with what is not a visible character written as an escape (`\\x1b`)."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        repr(char)[1:-1] if unicodedata.category(char) in UNSAFE and char not in JOINERS else char
        for char in text
    )


def say(line: str = "", file: TextIO | None = None) -> None:
    """Print one line that may hold text from files; standard output by default."""
    stream = sys.stdout if file is None else file
    encoding = getattr(stream, "encoding", None) or "utf-8"
    # What the terminal's encoding lacks is escaped as well: a name must not end the program.
    text = printable(line).encode(encoding, "backslashreplace").decode(encoding)
    print(text, file=stream, flush=True)


def say_all(lines: Iterable[str], file: TextIO | None = None) -> None:
    """`say` each of the lines."""
    for line in lines:
        say(line, file)
