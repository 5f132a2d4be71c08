"""The exceptions for input files that cannot be used, and output that cannot be written."""

from __future__ import annotations

from collections.abc import Sequence

from data.counting import more_like_it
from data.plain_text import printable


class DataError(ValueError):
    """Input on disk is unusable; the message is one sentence that names the file and the remedy.

    What the message quotes from files is made harmless for the terminal (`data.plain_text`).
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


class StorageError(DataError):
    """Output cannot be written; the message names the path and the remedy."""


class DatasetError(DataError):
    """A data set is unusable as a whole, though each of its images and boxes may be in order."""


def raise_first(problems: Sequence[DataError]) -> None:
    """Raise the first problem, if any, and say how many there are."""
    if problems:
        raise DataError(f"{problems[0]}{more_like_it(len(problems) - 1)}")
