"""Saving and loading: tensors and plain containers only, and never a half-written file.

How a file is read stands in `models/weights_file.py`, what it must hold in `saved_content.py`.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from aligndet.saved_content import check_content
from data.atomic_files import open_atomic
from models import checksum
from models.weight_errors import DamagedFile
from models.weights_file import file_in, read_weights_file


def save(content: dict[str, Any], path: str | Path, previous: Path | None = None) -> None:
    """Write `content` and its checksum so that `path` holds either the old file or the complete new
    one.

    Args:
        content: what to write; one entry is `model`.
        path: the file.
        previous: where the old file is kept, beside `path`; None: nowhere. A kill at any moment
            leaves a complete file under one of the two names.

    Raises:
        StorageError: it cannot be written; the old file stays.
    """
    path = Path(path)
    with open_atomic(path, binary=True, size=bytes_of(content)) as file:
        torch.save(checksum.with_checksum(content), file)
        if previous is not None and path.exists():
            file.flush()
            os.fsync(file.fileno())  # the new file is complete before the old one moves
            keep_as(path, previous)


def bytes_of(content: Any) -> int:
    """Bytes of all tensors in nested containers, which is nearly the size of their file."""
    if isinstance(content, torch.Tensor):
        return content.nbytes
    if isinstance(content, Mapping):
        return sum(map(bytes_of, content.values()))
    return sum(map(bytes_of, content)) if isinstance(content, (list, tuple)) else 0


def keep_as(path: Path, previous: Path) -> None:
    """Give a file a second name; where there are no hard links, another one."""
    previous.unlink(missing_ok=True)
    try:
        os.link(path, previous)
    except OSError:
        with contextlib.suppress(FileNotFoundError):  # another rank that stops has moved it
            os.replace(path, previous)


def save_state_dict(weights: dict[str, torch.Tensor], path: str | Path) -> None:
    """Write weights alone, as other programs expect them: without a checksum of ours."""
    with open_atomic(path, binary=True) as file:
        torch.save(weights, file)


def file_of(path: str | Path, name: str, purpose: str) -> Path:
    """`path` itself, or the file of that name if it is a directory.

    Raises:
        ValueError: it is a directory without such a file.
    """
    path = Path(path)
    if not os.path.isdir(path):
        return path
    if not os.path.exists(path / name):
        raise ValueError(
            f"{path}: holds no {name}; give {purpose} the directory of a run that has written one"
        )
    return path / name


def load(path: str | Path, purpose: str) -> dict[str, Any]:
    """Read a file that `save` wrote, onto the CPU.

    Args:
        path: the file, or the directory of a run that has ended: then its `weights.pt`.
        purpose: the option that named it, for the error message (`--init`, `--checkpoint`).

    Returns:
        Its content; what `saved_content` lists is there and usable.

    Raises:
        DamagedFile: it is not what was written: cut off, or with a wrong checksum.
        ValueError: it is missing, not a file of ours, or an entry is missing or unusable.
    """
    path = file_of(path, "weights.pt", purpose)
    if not os.path.lexists(path):
        raise ValueError(f"{path}: no such file; give {purpose} an existing checkpoint")
    remedy = f"give {purpose} another file that a run wrote"
    try:
        content = read_weights_file(path, remedy)
    except DamagedFile as error:
        message = f"{path}: not a readable checkpoint ({error.reason}); {remedy}"
        raise DamagedFile(message, error.reason) from None
    try:
        check_content(content)
    except ValueError as error:
        raise ValueError(f"{path}: {error}; {remedy}") from None
    return {key: value for key, value in content.items() if key != checksum.KEY}


def digest(source: str | None) -> str | None:
    """What a start was given, whatever its path: a digest of a file's bytes (of the weights in
    a directory), or the name of a source that is no file. None: there is no such file (any more).
    """
    if source is None or source.partition(":")[0] in ("torchvision", "http", "https"):
        return source or "nothing"
    try:
        path = file_in(Path(source))
    except ValueError:  # a folder without weights
        return None
    if not path.is_file():
        return None
    result = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            result.update(block)
    return result.hexdigest()
