"""Generated datasets: a folder that is complete or not there, and not made twice."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data.atomic_files import cannot_write
from data.errors import DataError
from data.json_files import write_json_atomic


def write_once(
    output: Path,
    record: str,
    settings: dict[str, Any],
    what: str,
    missing: Callable[[Path], str | None],
    write: Callable[[Path], None],
) -> None:
    """Fill a folder, unless exactly this dataset is there already.

    Args:
        output: folder to create; an empty one may exist.
        record: name of the file in it that holds the settings.
        settings: all that the dataset depends on.
        what: the kind of dataset, for messages.
        missing: which files of a folder with these settings are gone, in a word; None: none.
        write: fills an empty folder.

    Raises:
        DataError: `output` holds something else.
        StorageError: it cannot be written.
    """

    def is_there() -> bool:
        if not output.exists() or (output.is_dir() and not any(output.iterdir())):
            return False
        remedy = "choose another --output or delete it"
        try:
            found = json.loads((output / record).read_text())
        except (OSError, ValueError):
            raise DataError(f"{output}: exists and is not a {what}; {remedy}") from None
        if found != settings:
            raise DataError(f"{output}: a {what} made with other settings ({found}); {remedy}")
        gone = missing(output)
        if gone is not None:
            raise DataError(f"{output}: some of its {gone} are gone; {remedy}")
        return True

    if is_there():
        return
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as scratch:
            folder = Path(scratch) / "dataset"
            folder.mkdir()
            write(folder)
            write_json_atomic(settings, folder / record)
            try:
                os.rename(folder, output)  # onto nothing or, on POSIX, onto an empty folder
            except OSError:
                if not is_there():  # another process may have been faster
                    raise
    except OSError as error:
        raise cannot_write(output, error) from None
