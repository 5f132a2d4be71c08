"""The exceptions for input files that cannot be used."""

from __future__ import annotations


class DataError(ValueError):
    """Input on disk is unusable; the message is one sentence that names the file and the remedy."""


class DatasetError(DataError):
    """A data set is unusable as a whole, though each of its images and boxes may be in order."""
