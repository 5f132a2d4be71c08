"""The list of images that a run skipped, `skipped_images.jsonl` in its directory."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from data.atomic_files import cannot_write
from data.images import BadFile


class SkippedImages:
    """A file with one JSON object a line, `file` and `reason`, each image file once.

    All ranks append to it. A killed run has listed images of steps that are done again when it is
    resumed: they are the same ones.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.known: set[str] = set()

    def note(self, bad: Sequence[BadFile]) -> None:
        """List those that are not listed yet, and say so.

        Raises:
            StorageError: the list cannot be written.
        """
        if all(file.file in self.known for file in bad):
            return
        self._read()
        for file in bad:
            if file.file not in self.known:
                self.known.add(file.file)
                self._append(json.dumps(file._asdict()))
                tqdm.write(f"skipped: {file.reason}")

    def remove(self) -> None:
        """Start over."""
        self.path.unlink(missing_ok=True)
        self.known.clear()

    def _read(self) -> None:
        """Take in what other ranks, or this run before it was resumed, have listed."""
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        for line in lines:
            try:
                self.known.add(json.loads(line)["file"])
            except (ValueError, KeyError, TypeError):
                continue  # cut off by a kill; the file is met again

    def _append(self, line: str) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "ab+", buffering=0) as file:  # one write: ranks' lines do not mix
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - 1))
                cut = file.read() not in (b"", b"\n")  # by a kill
                file.write((b"\n" if cut else b"") + line.encode() + b"\n")
        except OSError as error:
            raise cannot_write(self.path, error) from None
