"""Remember which image files are whole, so that a data set is read through once, not at every start
by every process.

Beside a folder of many images lies a hidden file `.FOLDER.checked` (where that cannot be written,
one in a cache folder, see `data.kept_beside`): what the header of each image says, with the size
and the time of the file. A file that has another size or time is read again, and so is one that
could not be used. Of processes that start together, one reads the files.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from data.errors import DataError, StorageError
from data.image_header import Header
from data.kept_beside import locked, places, read_kept, write_first
from data.packed_file import PackedWriter
from data.texts import Texts

SUFFIX = ".checked"
VERSION = 1  # of what is checked, and how; what another one has remembered is checked again
MANY = 2000  # files; fewer are read quickly
SETTLED = 2 * 10**9  # nanoseconds; a file that was changed just now may change again unnoticed
THREADS = 8
TOGETHER = 256  # files that a thread asks the system about at once

Found = Header | DataError
Read = Callable[[Sequence[str]], list[Found]]


class State(NamedTuple):
    """By what a change of a file is noticed."""

    size: int  # bytes
    changed: int  # nanoseconds


def checked_headers(root: Path, files: Sequence[str], read: Read) -> list[Found]:
    """The header of each file, or why it cannot be used.

    Args:
        root: folder of the files.
        files: relative to it.
        read: reads the headers of some of them.
    """
    if len(files) < MANY:
        return read(files)
    targets = places(root, SUFFIX, hidden=True)
    states = _states(root, files)
    found = _remembered(targets, files, states)
    if None not in found:
        return found
    with locked(root):
        found = _remembered(targets, files, states)  # another process may have read them meanwhile
        rest = [place for place, header in enumerate(found) if header is None]
        for place, header in zip(rest, read([files[i] for i in rest]), strict=True):
            found[place] = header
        if rest:
            _remember(targets, files, states, found)
    return found


def _states(root: Path, files: Sequence[str]) -> list[State | None]:
    """The state of each file; None if the system does not tell it: reading it will say why."""

    def some(start: int) -> list[State | None]:
        return [_state(f"{root}/{file}") for file in files[start : start + TOGETHER]]

    with ThreadPoolExecutor(THREADS) as pool:
        parts = pool.map(some, range(0, len(files), TOGETHER))
        return [state for part in parts for state in part]


def _state(path: str) -> State | None:
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return State(found.st_size, max(found.st_mtime_ns, found.st_ctime_ns))


def _remembered(
    targets: list[Path], files: Sequence[str], states: Sequence[State | None]
) -> list[Found | None]:
    """The headers of files that have not changed since they were checked; None for others."""
    known = {(name, *state): header for name, state, header in _kept_rows(targets)}
    return [
        _header(known.get((file, *state))) if state is not None else None
        for file, state in zip(files, states, strict=True)
    ]


def _kept_rows(targets: list[Path]) -> Iterator[tuple[str, list[int], list[int]]]:
    """Name, state and header of each file that was checked."""
    for packed in read_kept(targets):
        if packed.content.get("version") == VERSION:
            names = Texts(packed.stored("names"), packed.stored("name_ends"))
            rows = packed.stored("states").tolist(), packed.stored("headers").tolist()
            yield from zip(names, *rows, strict=True)


def _header(stored: list[int] | None) -> Header | None:
    if stored is None:
        return None
    height, width, orientation, deep, several = stored
    return Header(height, width, orientation, bool(deep), bool(several))


def _remember(
    targets: list[Path],
    files: Sequence[str],
    states: Sequence[State | None],
    found: Sequence[Found],
) -> None:
    """Keep the headers, beside those of other files of the folder; if no place can be written, the
    next start reads the files again."""
    now = time.time_ns()
    rows = [
        (file, state, header)
        for file, state, header in zip(files, states, found, strict=True)
        if isinstance(header, Header) and state is not None and now - state.changed > SETTLED
    ]
    mine = set(files)
    rows += [row for row in _kept_rows(targets) if row[0] not in mine]

    def write(file: IO[bytes], folder: Path) -> None:
        writer = PackedWriter(file)
        names = Texts.of(row[0] for row in rows)
        writer.add("names", [names.letters])
        writer.add("name_ends", [names.ends])
        writer.add("states", [np.array([row[1] for row in rows], np.int64).reshape(-1, 2)])
        writer.add("headers", [np.array([row[2] for row in rows], np.int64).reshape(-1, 5)])
        writer.end({"version": VERSION})

    with contextlib.suppress(StorageError):
        write_first(targets, write)
