"""Open a COCO file, and keep the packed form of a large JSON, so that it is made once.

It is kept as `NAME.json.packed` beside the JSON, or where that cannot be written, in a cache
folder (`data.kept_beside`). It is taken if the JSON is still the one it was made of: by size and
times, and where these differ, as after copying both, by content.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, TypeVar

from data.coco_packing import pack_coco
from data.errors import DataError, StorageError
from data.json_files import LARGE_FILE
from data.kept_beside import locked, places, read_kept, write_first
from data.packed_coco import PackedCoco
from data.packed_file import Packed, is_packed

SUFFIX = ".packed"
T = TypeVar("T")
TICK = 0.1  # seconds; clocks of file systems are finer
READ = 2**24  # bytes


def open_coco(path: str | Path) -> PackedCoco:
    """The content of a COCO file: of a JSON, or of a packed one (`data.proposals --format packed`).

    Raises:
        DataError: see `data.coco_json.load_coco`; also if a packed file is damaged.
        StorageError: the packed form of a large JSON can be kept nowhere.
    """
    if is_packed(path):
        return PackedCoco(Packed(path))
    with contextlib.suppress(OSError):  # reading it says what is wrong
        if os.path.getsize(path) >= LARGE_FILE:
            return kept(path, SUFFIX, lambda *args: pack_coco(path, *args), PackedCoco)
    file = io.BytesIO()
    pack_coco(path, file)
    return PackedCoco(Packed(file.getvalue(), check=False))


def keep_packed(path: str | Path, write: Callable[[IO[bytes], dict[str, Any]], None]) -> None:
    """Keep the packed form of a large JSON that has just been written, so that nobody need read it.

    Args:
        path: of the JSON.
        write: writes the packed form to a file, with what is to be remembered of the JSON.
    """
    if os.path.getsize(path) < LARGE_FILE:
        return
    source = _source(path)
    with contextlib.suppress(StorageError):  # then it is read when it is first used
        write_first(places(path, SUFFIX), lambda file, folder: write(file, source))


def kept(
    path: str | Path,
    suffix: str,
    pack: Callable[[IO[bytes], Path, dict[str, Any]], None],
    opened: Callable[[Packed], T],
) -> T:
    """A packed form of a large JSON, made if there is none.

    Args:
        path: of the JSON.
        suffix: of the file's name.
        pack: writes it to a file, given a folder for temporary ones and what is to be remembered
            of the JSON.
        opened: makes of the file what is returned; a DataError says that it is to be made anew.
    """
    targets = places(path, suffix)
    found = _find(path, targets, opened)
    if found is not None:
        return found
    with locked(path):
        found = _find(path, targets, opened)  # another process may have made it meanwhile
        if found is not None:
            return found
        source = _source(path)

        def write(file: IO[bytes], folder: Path) -> None:
            pack(file, folder, source)
            if _stat(path) != {key: source[key] for key in _stat(path)}:
                raise DataError(f"{path}: has changed while it was read; start again")

        return opened(Packed(write_first(targets, write), check=False))


def _find(path: str | Path, targets: list[Path], opened: Callable[[Packed], T]) -> T | None:
    """The packed form if it is there and was made of this JSON."""
    for packed in read_kept(targets):
        with contextlib.suppress(DataError, OSError):  # another version's, or the JSON is gone
            found = opened(packed)
            source = packed.content["source"]
            if source is not None and _is_source(path, source):
                return found
    return None


def _is_source(path: str | Path, source: dict[str, Any]) -> bool:
    now = _stat(path)
    if {key: source[key] for key in now} == now:
        return True
    return source["size"] == now["size"] and source["digest"] == _digest(path)


def _source(path: str | Path) -> dict[str, Any]:
    """What to remember of a JSON."""
    _wait_for_a_tick(path)
    return {**_stat(path), "digest": _digest(path)}


def _stat(path: str | Path) -> dict[str, int]:
    """What changes with every change of a file, if two are more than a tick apart."""
    found = os.stat(path)
    return {"size": found.st_size, "mtime": found.st_mtime_ns, "ctime": found.st_ctime_ns}


def _wait_for_a_tick(path: str | Path) -> None:
    """A file that was changed just now could change again without another time."""
    age = time.time() - os.stat(path).st_ctime
    if abs(age) < TICK:
        time.sleep(2 * TICK)


def _digest(path: str | Path) -> str:
    result = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as file:
        while content := file.read(READ):
            result.update(content)
    return result.hexdigest()
