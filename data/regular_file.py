"""Refuse what only looks like a file: reading a pipe or a device may never end."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from data.errors import DataError

KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def unreadable(path: str | Path, error: OSError) -> DataError:
    """The error to raise for a file that is there and cannot be read."""
    return DataError(
        f"{path}: cannot be read ({error.strerror}); make it readable, or give another file"
    )


def require_regular(path: str | Path) -> None:
    """Raise a DataError if `path` is a pipe, a socket or a device; call it before opening a file.

    A missing file and a folder pass: opening them says what is wrong.
    """
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):  # missing, or a name that no system takes
        return
    kind = KINDS.get(stat.S_IFMT(mode))
    if kind is not None:
        raise DataError(f"{path}: is {kind}, not a file; give the path of a file")
