"""Read JSON files, and write any file all or nothing."""

from __future__ import annotations

import json
import os
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from data.errors import DataError
from data.processes import is_quiet

LARGE_FILE = 20e6  # bytes; reading as many takes about a second


def read_json(path: str | Path) -> Any:
    """Read a JSON file in UTF-8, UTF-16 or UTF-32, with a byte order mark or without; a large one,
    which takes seconds, is announced.

    Raises:
        DataError: the file is missing, cannot be read or is not JSON.
    """
    try:
        content = Path(path).read_bytes()
        if len(content) >= LARGE_FILE and not is_quiet():
            print(f"reading {path} ({len(content) / 1e6:,.0f} MB)", file=sys.stderr, flush=True)
        return json.loads(content)  # finds out the encoding
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; give the path of a COCO JSON") from None
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: not valid JSON (byte {error.object[error.start]:#04x} is not "
            f"{error.encoding.upper()}); write the file again, in UTF-8"
        ) from None
    except RecursionError:
        raise DataError(
            f"{path}: not valid JSON (its brackets are nested too deeply); write the file again"
        ) from None
    except (ValueError, OSError) as error:
        raise DataError(
            f"{path}: not valid JSON ({_reason(path, error)}); write the file again"
        ) from None


def _reason(path: str | Path, error: Exception) -> str:
    if Path(path).is_file() and not Path(path).stat().st_size:
        return "the file is empty"
    return str(error)


def write_json_atomic(content: Any, path: str | Path) -> None:
    """Write JSON so that `path` holds either the old file or the complete new one."""
    with open_atomic(path) as file:
        json.dump(content, file)


@contextmanager
def open_atomic(path: str | Path, binary: bool = False, sync: bool = True) -> Iterator[IO[Any]]:
    """Open a file for writing that replaces `path` once the block has ended without an error.

    After an error or a kill, `path` still holds what it held before.

    Args:
        path: the file; its folder is made if it is missing.
        binary: bytes instead of UTF-8 text.
        sync: wait until the content is on the disk, so that a power cut cannot leave an empty file.

    Raises:
        OSError: the file cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Unique, since processes of several machines may share the folder.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    # A file name that is not UTF-8 must not cost the result: it is written with escapes.
    text = {} if binary else {"encoding": "utf-8", "errors": "backslashreplace"}
    try:
        with open(temporary, "wb" if binary else "w", **text) as file:
            yield file
            if sync:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)  # still there only after a failure
