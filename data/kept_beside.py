"""Where a file lies that is made from another one and kept: beside it, or in a cache folder.

Several processes that start together make it once: one holds a lock, the others wait for it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from data.atomic_files import cannot_write, open_atomic
from data.errors import DataError, StorageError
from data.packed_file import Packed
from data.plain_text import say
from data.processes import is_quiet

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


def places(source: str | Path, suffix: str, hidden: bool = False) -> list[Path]:
    """Where to look for what is made from a file or folder, and to write it, the best place first.

    Args:
        source: the file or folder.
        suffix: of the name of what is made.
        hidden: the name beside it begins with a dot.
    """
    path = Path(os.path.abspath(source))
    mark = hashlib.blake2b(os.fsencode(os.path.realpath(path)), digest_size=8).hexdigest()
    name = f"{path.name}.{mark}{suffix}"
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    user = os.getuid() if hasattr(os, "getuid") else "user"
    temporary = Path(tempfile.gettempdir()) / f"aligndet-{user}"
    beside = path.with_name(f"{'.' * hidden}{path.name}{suffix}")
    return [beside, Path(home) / "aligndet" / name, temporary / name]


def write_first(targets: list[Path], write: Callable[[IO[bytes], Path], None]) -> Path:
    """Write a file to the first place that can be written, all or nothing.

    Args:
        targets: from `places`.
        write: gets the open file and its folder, which has room for temporary files.

    Returns:
        The place.

    Raises:
        StorageError: none can be written.
    """
    for target in targets:
        try:
            if target != targets[0]:
                _make_own(target.parent)
            with open_atomic(target, binary=True) as file:
                write(file, target.parent)
            return target
        except StorageError as error:
            problem = error
    raise problem


def read_kept(targets: list[Path]) -> Iterator[Packed]:
    """What lies at the places that `write_first` writes to, the best one first: whole packed files,
    and outside of the user's own folders only those that are the user's."""
    for target in targets:
        packed = None
        with contextlib.suppress(DataError, OSError):  # missing, or damaged
            if target == targets[0] or is_own(target):
                packed = Packed(target)
        if packed is not None:
            yield packed


def is_own(path: Path) -> bool:
    """Whether only this user, or the system's, can have written a file outside of the user's own
    folders: other people's must not be taken for ours."""
    return not hasattr(os, "getuid") or path.stat().st_uid in (os.getuid(), 0)


def _make_own(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(folder, error) from None
    if not is_own(folder):
        raise StorageError(f"{folder}: belongs to somebody else; remove it, or set XDG_CACHE_HOME")


@contextlib.contextmanager
def locked(path: str | Path) -> Iterator[None]:
    """Hold the system's lock on a file or folder that exists, while no other process does; says so
    if it must wait for one.

    Where there are no locks, or not for files that are only read (some network file systems),
    nothing is held; then several processes do the same work.
    """
    if fcntl is None:
        yield
        return
    file = os.open(path, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not is_quiet():
                    say(f"another process reads {path}, this one waits for it", sys.stderr)
                fcntl.flock(file, fcntl.LOCK_EX)
        yield
    finally:
        os.close(file)  # this gives the lock back
