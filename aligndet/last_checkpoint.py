"""Which checkpoint a run resumes from: `last.pt`, or the one before it if that is damaged.

`checkpoint.save` keeps the old `last.pt` as `last.pt.1` while it writes a new one.
"""

from __future__ import annotations

import contextlib
import os
import socket
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
    if problem:
        raise ValueError(problem)
    if path is None:
        return None
    if found is None:
        found, problem = _same_file(path)
    _check_same_step(path, found, problem)
    return found


def _same_file(path: Path) -> tuple[Found | None, str | None]:
    """What this rank reads where rank 0 has read a checkpoint, or why it cannot."""
    if not path.exists():
        return None, "there is no such file"
    try:
        return _named(path), None
    except ValueError as error:
        return None, f"it is another one ({error})"


def _check_same_step(path: Path, found: Found | None, problem: str | None) -> None:
    """Raises a ValueError on every rank if one has another file, or none, at `path`."""
    step = found and found.state["step"]
    reports = dist.gather_objects((step, problem, socket.gethostname()))
    right = reports[0][0]
    for step, problem, machine in reports:
        if problem is None and step != right:
            problem = f"it is another one (of step {step:,}, not {right:,})"
        if problem is not None:
            raise ValueError(
                f"{path}: rank 0 resumes from it, but on {machine} {problem}; put the run "
                "directory on storage that all machines share, or copy this file to each of them"
            )


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
