"""Why a file of weights cannot be used; the messages are finished where the file is known."""

from __future__ import annotations


class MoreThanTensors(Exception):
    """Loading the file would call something that makes neither tensors nor plain values."""


class DamagedFile(ValueError):
    """A file is not what was once written.

    Args:
        message: one sentence that names the file and says what to do.
        reason: the part of it that says what is wrong.
    """

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason
