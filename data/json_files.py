"""Read and write JSON files."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data.atomic_files import open_atomic
from data.errors import DataError
from data.json_checksum import check_text, without_checksum
from data.plain_text import say
from data.processes import is_quiet
from data.regular_file import require_regular, unreadable

LARGE_FILE = 20e6  # bytes; reading as many takes about a second


def read_json(path: str | Path) -> Any:
    """Read a JSON file in UTF-8, UTF-16 or UTF-32, with a byte order mark or without; a large one,
    which takes seconds, is announced.

    Raises:
        DataError: the file is missing, cannot be read, is not JSON, or is damaged (if it has a
            checksum, see `data.json_checksum`).
    """
    with readable(path):
        content = Path(path).read_bytes()
        check_text(path, content)
        return without_checksum(json.loads(content))  # finds out the encoding


@contextmanager
def readable(path: str | Path) -> Iterator[None]:
    """Around the reading of a JSON file: announces a large one, and says what is wrong.

    Raises:
        DataError: see `read_json`.
    """
    require_regular(path)
    try:
        size = Path(path).stat().st_size
        if size >= LARGE_FILE and not is_quiet():
            say(f"reading {path} ({size / 1e6:,.0f} MB)", sys.stderr)
        yield
    except DataError:
        raise
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
    except OSError as error:
        raise unreadable(path, error) from None
    except ValueError as error:
        raise DataError(
            f"{path}: not valid JSON ({_reason(path, error)}); write the file again"
        ) from None


def _reason(path: str | Path, error: Exception) -> str:
    if Path(path).is_file() and not Path(path).stat().st_size:
        return "the file is empty"
    return str(error)


def write_json_atomic(content: Any, path: str | Path) -> None:
    """Write JSON so that `path` holds either the old file or the complete new one.

    Raises:
        StorageError: the file cannot be written.
    """
    with open_atomic(path) as file:
        json.dump(content, file)
