"""A checksum at the end of a JSON file: a changed digit is still JSON, but no longer the file.

The last field of the file's object is `"checksum": {"bytes": N, "crc32": "..."}`, of the N bytes
before it. A file that was edited or rewritten, so that another number of bytes is there, is taken
as it is.
"""

from __future__ import annotations

import io
import json
import os
import re
import zlib
from pathlib import Path
from typing import IO, Any, BinaryIO

from data.errors import DataError

FIELD = "checksum"
LONGEST = 100  # bytes of the field
AT_END = re.compile(rb', "checksum": \{"bytes": (\d{1,18}), "crc32": "([0-9a-f]{8})"\}\}\s*$')


class ChecksumWriter:
    """Writes the text of a JSON object, and its checksum as the last field.

    Args:
        file: a text file in UTF-8. What is written must be ASCII, as `json.dumps` makes it.
    """

    def __init__(self, file: IO[str]) -> None:
        self.file, self.bytes, self.crc32 = file, 0, 0

    def write(self, text: str) -> None:
        """Write a part of the text, the object's last bracket left out."""
        self.file.write(text)
        self.bytes += len(text)
        self.crc32 = zlib.crc32(text.encode("ascii"), self.crc32)

    def end(self) -> None:
        """Write the checksum and the last bracket."""
        field = {"bytes": self.bytes, "crc32": f"{self.crc32:08x}"}
        self.file.write(f', "{FIELD}": {json.dumps(field)}}}')


class Checksum:
    """Compares what is read with a file's checksum.

    Args:
        path: of the file, for the message.
        found: a match of `AT_END`, or None: there is no checksum.
        place: bytes before the match.
    """

    def __init__(self, path: str | Path, found: re.Match[bytes] | None, place: int) -> None:
        has_one = found is not None and place == int(found[1])
        self.path, self.expected = path, int(found[2], 16) if has_one else None
        self.left, self.crc32 = place if has_one else 0, 0

    def update(self, content: bytes) -> None:
        """Take the next bytes of the file."""
        mine = memoryview(content)[: self.left]
        self.crc32, self.left = zlib.crc32(mine, self.crc32), self.left - len(mine)

    def check(self) -> None:
        """Raise a DataError if what was read is not what the checksum says."""
        if self.expected is not None and self.crc32 != self.expected:
            raise DataError(
                f"{self.path}: is damaged, its checksum is that of another content; write the file "
                f"again (or remove its last field, '{FIELD}', if it was edited)"
            )


def checksum_of(path: str | Path, file: BinaryIO) -> Checksum:
    """The checksum that an open file states; most have none. Leaves the file at its start."""
    end = file.seek(0, os.SEEK_END)
    start = file.seek(max(0, end - LONGEST))
    found = AT_END.search(file.read())
    file.seek(0)
    return Checksum(path, found, start + found.start() if found else 0)


def check_text(path: str | Path, content: bytes) -> None:
    """Raise a DataError if a file's content is not what its checksum says; most files have none.

    Args:
        path: of the file, for the message.
        content: all of it.
    """
    checksum = checksum_of(path, io.BytesIO(content))
    checksum.update(content)
    checksum.check()


def without_checksum(content: Any) -> Any:
    """The content of a JSON file without the field, which would be wrong in any other file."""
    field = content.get(FIELD) if isinstance(content, dict) else None
    if isinstance(field, dict) and field.keys() == {"bytes", "crc32"}:
        del content[FIELD]
    return content
