"""Saving and loading: tensors and plain containers only, and never a half-written file."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path
from typing import Any

import torch

from data.json_files import open_atomic
from models.weights_file import file_in


def save(content: dict[str, Any], path: str | Path) -> None:
    """Write `content` so that `path` holds either the old file or the complete new one."""
    with open_atomic(path, binary=True) as file:
        torch.save(content, file)


def file_of(path: str | Path, name: str, purpose: str) -> Path:
    """`path` itself, or the file of that name if it is a directory.

    Raises:
        ValueError: it is a directory without such a file.
    """
    path = Path(path)
    if not path.is_dir():
        return path
    if not (path / name).exists():
        raise ValueError(
            f"{path}: holds no {name}; give {purpose} the directory of a run that has written one"
        )
    return path / name


def load(path: str | Path, purpose: str) -> dict[str, Any]:
    """Read a file that `save` wrote, onto the CPU.

    Args:
        path: the file, or the directory of a run that has ended: then its `weights.pt`.
        purpose: the option that named it, for the error message (`--init`, `--checkpoint`).

    Raises:
        ValueError: the file is missing, truncated, or not a checkpoint.
    """
    path = file_of(path, "weights.pt", purpose)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; give {purpose} an existing checkpoint") from None
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0][:100] if str(error) else type(error).__name__
        raise ValueError(
            f"{path}: not a readable checkpoint ({reason}); give {purpose} a file that a run wrote"
        ) from None
    if not isinstance(content, dict) or "model" not in content:
        raise ValueError(
            f"{path}: not a checkpoint of this project (no entry 'model'); "
            f"give {purpose} a run's weights.pt"
        )
    return content


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
