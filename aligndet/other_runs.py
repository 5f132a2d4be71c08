"""Files of another run: those that a new run finds in its directory, which nobody must take for its
own, and those of a run that goes on in another directory."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from data.atomic_files import open_atomic

FORMER = "former"  # the folder of the run that was there before
RESULTS = (
    *("config.yaml", "metrics.jsonl", "manifest.json", "weights*.pt", "results.json"),
    *("*per_class.json", "*detections.json", "evaluation*.json", "report.html", "errors.jpg"),
)
GOES_ON = ("metrics.jsonl", "manifest.json", "weights_best.pt", "clusters.pt")


def put_aside(folder: Path) -> None:
    """Move what a finished run has written into its subfolder `former`, in place of what is there;
    of a run that was not finished, remove it."""
    finished = (folder / "weights.pt").exists() or (folder / "results.json").exists()
    if not finished:
        for file in results_in(folder):
            file.unlink()
        return
    former = folder / FORMER
    if former.exists():
        shutil.rmtree(former)
    former.mkdir()
    for file in results_in(folder):
        os.replace(file, former / file.name)


def results_in(folder: Path) -> Iterator[Path]:
    """The files that a run has written for its users."""
    return iter({file for pattern in RESULTS for file in folder.glob(pattern)})


def take_over(resumed: Path, folder: Path) -> None:
    """Copy what a run needs to go on in another folder than that of the checkpoint `resumed`: its
    metrics, its best weights, its pseudo-classes."""
    for name in GOES_ON:
        source = resumed.parent / name
        if source.is_file():
            with open(source, "rb") as file, open_atomic(folder / name, binary=True) as copy:
                shutil.copyfileobj(file, copy)
