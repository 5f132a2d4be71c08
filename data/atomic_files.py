"""Write a file all or nothing, and say what is wrong where it cannot be written."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from data.errors import StorageError

FULL = (errno.ENOSPC, errno.EDQUOT)  # the disk, or the user's share of it
TEMPORARY = re.compile(r"\..+\.[0-9a-f]{32}\.tmp")


@contextmanager
def open_atomic(
    path: str | Path, binary: bool = False, sync: bool = True, size: int | None = None
) -> Iterator[IO[Any]]:
    """Open a file for writing that replaces `path` once the block has ended without an error.

    After an error or a kill, `path` still holds what it held before.

    Args:
        path: the file; its folder is made if it is missing.
        binary: bytes instead of UTF-8 text.
        sync: wait until the content is on the disk, so that a power cut cannot leave an empty file.
        size: bytes that will be written, if it is known; for the message of a full disk.

    Raises:
        StorageError: the file cannot be written.
    """
    path = Path(path)
    # Unique, since processes of several machines may share the folder.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    # A file name that is not UTF-8 must not cost the result: it is written with escapes.
    text = {} if binary else {"encoding": "utf-8", "errors": "backslashreplace"}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb" if binary else "w", **text) as file:
            yield file
            if sync:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        cause = os_error_of(error)
        if cause is None:
            raise
        _discard(temporary)  # before the room is measured
        raise cannot_write(path, cause, size) from None
    finally:
        _discard(temporary)  # it is there only after a failure, if at all


def _discard(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)


def os_error_of(error: BaseException | None) -> OSError | None:
    """The OSError that is or lies behind an error: torch.save raises others from it."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


def cannot_write(path: str | Path, error: OSError, size: int | None = None) -> StorageError:
    """The error to raise for a file that could not be written because of `error`."""
    reason = error.strerror or str(error)
    if error.errno not in FULL:
        return StorageError(
            f"{path}: cannot be written ({reason}); make that possible, or choose another place"
        )
    needed = "" if size is None else f", {size / 1e6:,.1f} MB are needed"
    with contextlib.suppress(OSError):
        free = shutil.disk_usage(Path(path).parent).free
        needed += f", {free / 1e6:,.1f} MB are free"
    return StorageError(
        f"{path}: cannot be written ({reason}{needed}); make room, or choose another place"
    )


def remove_leftovers(folder: Path) -> None:
    """Delete what writers that were killed left in a folder; files of other names stay."""
    for file in folder.iterdir():
        if TEMPORARY.fullmatch(file.name):
            file.unlink(missing_ok=True)
