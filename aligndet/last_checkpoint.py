"""Which checkpoint a run resumes from: `last.pt`, or the one before it if that is damaged.

`checkpoint.save` keeps the old `last.pt` as `last.pt.1` while it writes a new one.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any, NamedTuple

from aligndet import checkpoint, dist
from models.weight_errors import DamagedFile

LAST, PREVIOUS = "last.pt", "last.pt.1"


class Found(NamedTuple):
    """A checkpoint to resume from."""

    path: Path
    state: dict[str, Any]  # its content


def find_checkpoint(resume: str, folder: Path) -> Found | None:
    """The checkpoint to resume from; None: the run starts anew. Every rank gets the same.

    Rank 0 decides, and says so if it is not `last.pt`. No rank returns before all have read it.

    Args:
        resume: `auto`, `none`, or the path of a checkpoint or of a run directory.
        folder: the run directory, for `auto`.

    Raises:
        ValueError: the file is missing, damaged with none before it, or not a run's state.
    """
    if resume == "none":
        return None
    found, problem = None, None
    if dist.is_main():
        try:
            found = _choose(resume, folder)
        except ValueError as error:
            problem = str(error)
    path, problem = dist.broadcast_object((found and found.path, problem))
    if found is None and path is not None:
        try:
            found = _named(path)
        except ValueError as error:  # the folder is not shared by all machines
            problem = str(error)
    problems = [text for text in dist.gather_objects(problem) if text]
    if problems:
        raise ValueError(problems[0])
    return found


def whole_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint in a run directory that is not damaged, if there is one."""
    for path in (folder / LAST, folder / PREVIOUS):
        if path.exists():
            with contextlib.suppress(DamagedFile):
                return _read(path).path
    return None


def _choose(resume: str, folder: Path) -> Found | None:
    place = folder if resume == "auto" else Path(resume)
    if any(os.path.exists(place / name) for name in (LAST, PREVIOUS)):
        return _newest(place)
    if resume == "auto":
        return None
    return _named(checkpoint.file_of(place, LAST, "--resume"))


def _newest(folder: Path) -> Found:
    last, previous = folder / LAST, folder / PREVIOUS
    reason = "is missing"
    if last.exists() or not previous.exists():
        try:
            return _read(last)
        except DamagedFile as error:
            reason = f"is damaged ({error.reason})"
            if not previous.exists():
                raise ValueError(
                    f"{last}: not a readable checkpoint ({error.reason}), and there is none before "
                    "it; start over with --resume none, or give --resume another file"
                ) from None
    try:
        found = _read(previous)
    except DamagedFile as error:
        raise ValueError(
            f"{last}: {reason}, and so is {PREVIOUS}, the one before it ({error.reason}); start "
            "over with --resume none, or give --resume another file"
        ) from None
    print(f"{last}: {reason}; resuming from {PREVIOUS}, step {found.state['step']:,}", flush=True)
    return found


def _named(path: Path) -> Found:
    """A checkpoint that is named, which must be whole.

    Raises:
        ValueError: it is missing, damaged, or not a run's state.
    """
    try:
        return _read(path)
    except DamagedFile as error:
        previous = path.with_name(PREVIOUS)
        if path.name != LAST or not previous.exists():
            raise
        raise DamagedFile(
            f"{path}: not a readable checkpoint ({error.reason}); give --resume {previous}, the "
            "one before it",
            error.reason,
        ) from None


def _read(path: Path) -> Found:
    state = checkpoint.load(path, "--resume")
    if "optimizer" not in state:
        raise ValueError(f"{path}: holds weights only; give --resume a run's last.pt")
    return Found(path, state)
