"""What a run of `python -m data.proposals` has finished, so that a killed one can resume.

A journal is a file of JSON lines: a header, then one line per image. Each line is handed to the
operating system at once; a kill costs at most the line being written, which is cut off at the next
start. Each line of an image ends in a checksum, so that a damaged one is noticed. The boxes stay in
the file; memory holds only where each image's line is.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data.atomic_files import cannot_write
from data.counting import count
from data.errors import DataError
from data.proposals.workers import FileState, Found

FORMAT = 1  # of the lines
FIELDS = {"file", "bytes", "mtime_ns", "height", "width", "boxes"}
CHECKSUM = b',"crc32":"'  # never inside a JSON text, where quotes have a backslash before them


class _Line(NamedTuple):
    """Where an image's line is, and all it holds but the boxes."""

    offset: int  # bytes
    length: int
    state: FileState
    size: tuple[int, int]  # (height, width)


class Journal:
    """The journal at `path`, opened for appending; one process writes to it.

    Args:
        path: created, with its folder, if it is missing.
        digest: of everything the boxes depend on but the image. A journal with another digest,
            or without a readable header, is started anew.
        report: called with a sentence if an existing journal cannot be used, or only in part.

    Raises:
        StorageError: the file cannot be created or read.
    """

    def __init__(self, path: Path, digest: str, report: Callable[[str], None]) -> None:
        self.path = path
        self._lines: dict[str, _Line] = {}
        header = {"journal": FORMAT, "digest": digest}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            problem = self._load(header, report) if path.exists() else "is new"
            # Unbuffered, so that add() returns when the line is out. A journal that is started anew
            # is another file: a run that still writes to the old one keeps its own.
            if problem:
                path.unlink(missing_ok=True)
            self._file = open(path, "a+b", buffering=0)  # noqa: SIM115 (closed by __exit__)
        except OSError as error:
            raise cannot_write(path, error) from None
        if problem:
            self._append(json.dumps(header, separators=(",", ":")).encode() + b"\n")
        if problem not in (None, "is new"):
            report(f"{path}: {problem}; starting over")

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def __len__(self) -> int:
        return len(self._lines)

    def find(self, file: str, state: FileState) -> tuple[int, int] | None:
        """(height, width) of an image that is finished and has not changed since, else None."""
        line = self._lines.get(file)
        return line.size if line is not None and line.state == state else None

    def add(self, found: Found) -> None:
        """Append the line of a finished image; it replaces an earlier one of the same file.

        Raises:
            DataError: the file cannot be written, for example because the disk is full.
        """
        content: dict[str, Any] = {
            "file": found.file,
            "bytes": found.state.bytes,
            "mtime_ns": found.state.mtime_ns,
            "height": found.height,
            "width": found.width,
            "boxes": found.boxes.tolist(),
        }
        if found.masks is not None:
            content["masks"] = [mask.decode("ascii") for mask in found.masks]
        offset, length = self._append(_line_of(content))
        self._lines[found.file] = _Line(offset, length, found.state, (found.height, found.width))

    def size(self, file: str) -> tuple[int, int]:
        """(height, width) of a finished image."""
        return self._lines[file].size

    def boxes(self, file: str) -> np.ndarray:
        """(P, 4) float64 xyxy boxes of a finished image, exactly as they were added.

        Raises:
            DataError: the line has been damaged since the journal was opened.
        """
        return self._read(file)[0]

    def masks(self, file: str) -> list[bytes] | None:
        """The masks of these boxes, as they were added; None if they have none.

        Raises:
            DataError: see `boxes`.
        """
        return self._read(file)[1]

    def _read(self, file: str) -> tuple[np.ndarray, list[bytes] | None]:
        line = self._lines[file]
        self._file.seek(line.offset)
        read = _read_line(self._file.read(line.length), line.offset)
        if read is None or read[0] != file or read[1] != line:
            raise DataError(
                f"{self.path}: the line of {file} has changed while the file was in use; run the "
                "command again, which searches this image anew"
            )
        return read[2:]

    def remove(self) -> None:
        """Close and delete the file."""
        self._file.close()
        self.path.unlink()

    def _append(self, data: bytes) -> tuple[int, int]:
        """Write one line; returns its offset and length in bytes."""
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            raise DataError(
                f"{self.path}: cannot be written ({error.strerror}); make room and run the command "
                "again, finished images are kept"
            ) from None
        return self._file.tell() - len(data), len(data)

    def _load(self, header: dict[str, Any], report: Callable[[str], None]) -> str | None:
        """Read the lines and cut off a torn last one; returns why all are unusable, or None."""
        damaged = 0
        with open(self.path, "r+b") as file:
            line = file.readline()
            first = _parse(line)
            if first.get("journal") != FORMAT or "digest" not in first or line[-1:] != b"\n":
                return "is not a readable journal"
            if first != header:
                return "was made with other settings"
            end = file.tell()
            while data := file.readline():
                if not data.endswith(b"\n"):
                    file.truncate(end)
                    break
                read = _read_line(data, end)
                if read is None:
                    damaged += 1
                else:
                    self._lines[read[0]] = read[1]
                end += len(data)
        if damaged:
            lines = count(damaged, "damaged line")
            report(f"{self.path}: {lines}; such images are searched again")
        return None


def _line_of(content: dict[str, Any]) -> bytes:
    """An image's line, with the checksum of the rest as its last field."""
    text = json.dumps(content, separators=(",", ":")).encode()
    return text[:-1] + CHECKSUM + b'%08x"}\n' % zlib.crc32(text)


def _read_line(
    data: bytes, offset: int
) -> tuple[str, _Line, np.ndarray, list[bytes] | None] | None:
    """File, place, boxes (P, 4) and masks of an image's line; None if it is damaged.

    Earlier versions wrote lines without a checksum.
    """
    text, mark, end = data.rpartition(CHECKSUM)
    if mark:
        text += b"}"
        if end != b'%08x"}\n' % zlib.crc32(text):
            return None
    content = _parse(text if mark else data)
    try:
        boxes = np.array(content["boxes"], dtype=np.float64)
        state = FileState(int(content["bytes"]), int(content["mtime_ns"]))
        size = (int(content["height"]), int(content["width"]))
        file, masks = content["file"], _read_masks(content)
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError):
        return None
    shaped = not boxes.size or boxes.shape[1:] == (4,)
    if not shaped or not isinstance(file, str) or content.keys() - {"masks"} != FIELDS:
        return None
    boxes = boxes.reshape(-1, 4)
    if masks is not None and len(masks) != len(boxes):
        return None
    return file, _Line(offset, len(data), state, size), boxes, masks


def _read_masks(content: dict[str, Any]) -> list[bytes] | None:
    masks: Sequence[str] | None = content.get("masks")
    return None if masks is None else [mask.encode("ascii") for mask in masks]


def _parse(line: bytes) -> dict[str, Any]:
    """The object in a JSON line; an empty one if there is none."""
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
