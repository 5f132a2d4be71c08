"""Saving and loading: tensors and plain containers only, and never a half-written file."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch

from data.json_files import open_atomic


def save(content: dict[str, Any], path: str | Path) -> None:
    """Write `content` so that `path` holds either the old file or the complete new one."""
    with open_atomic(path, binary=True) as file:
        torch.save(content, file)


def load(path: str | Path, purpose: str) -> dict[str, Any]:
    """Read a file that `save` wrote, onto the CPU.

    Args:
        path: the file.
        purpose: the option that named it, for the error message (`--init`, `--checkpoint`).

    Raises:
        ValueError: the file is missing, truncated, or not a checkpoint.
    """
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
