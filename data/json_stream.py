"""Read a JSON object whose lists are too long to be held in memory: its parts one after the other.

The whole of COCO's proposals as Python objects would take 20 GB. Here a block of text is decoded at
a time, by the standard library's decoder, and lists come in parts.

A list of objects is cut at a `}, {`. If the text before a cut is a whole number of objects, it is
valid JSON between brackets; if the cut is inside of an object or a text, it is not. So a wrong cut
is noticed, and the objects of that block are decoded one by one.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Collection, Iterator
from json.decoder import scanstring
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from data.json_checksum import Checksum, checksum_of

BLOCK = 2**23  # bytes that are read at once
WINDOW = 2**16  # characters at the end of a block in which a cut is looked for
CUT = re.compile(r"\}[ \t\n\r]*,[ \t\n\r]*(?=\{)")
SPACE = re.compile(r"[ \t\n\r]*")
DECODER = json.JSONDecoder()


class Part(NamedTuple):
    """A part of the object."""

    key: str | None  # None: of a JSON whose top level is a list
    value: Any  # of a streamed list, some of its entries
    first: bool  # the key begins here; if it did before, JSON says that what it had is void


def read_parts(
    path: str | Path, lists: Collection[str], progress: Callable[[int], object] | None = None
) -> Iterator[Part]:
    """Yield the parts of a JSON file, in UTF-8, UTF-16 or UTF-32.

    Args:
        path: of the file.
        lists: keys whose values, if they are lists, come in parts; other values come whole. A top
            level that is a list comes in parts as well, any other one whole.
        progress: called with the number of bytes that have been read since the last call.

    Raises:
        DataError: the file's checksum is that of another content.
        UnicodeDecodeError, ValueError, RecursionError: it is not valid JSON; messages as from
            `json.loads`.
        OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        text = _Text(file, checksum_of(path, file), progress or (lambda size: None))
        text.skip_space()
        if text.next() == "{":
            yield from _object(text, lists)
        elif text.next() == "[":
            yield from _list(text, None)
        else:
            yield Part(None, text.value(), first=True)
        text.skip_space()
        if not text.at_end():
            raise text.error("Extra data")


def _object(text: _Text, lists: Collection[str]) -> Iterator[Part]:
    text.place += 1
    text.skip_space()
    if text.next() == "}":
        text.place += 1
        return
    while True:
        if text.next() != '"':
            raise text.error("Expecting property name enclosed in double quotes")
        key = text.string()
        text.skip_space()
        if text.next() != ":":
            raise text.error("Expecting ':' delimiter")
        text.place += 1
        text.skip_space()
        if key in lists and text.next() == "[":
            yield from _list(text, key)
        else:
            yield Part(key, text.value(), first=True)
        if text.ends("}"):
            return


def _list(text: _Text, key: str | None) -> Iterator[Part]:
    text.place += 1
    text.skip_space()
    if text.next() == "]":
        text.place += 1
        yield Part(key, [], first=True)
        return
    first, ended = True, False
    while not ended:
        entries = text.objects()
        if entries is None:
            entries, ended = text.entries()
        yield Part(key, entries, first)
        first = False


class _Text:
    """The text of a file, a block of which is in memory, and a place in it."""

    def __init__(
        self, file: BinaryIO, checksum: Checksum, progress: Callable[[int], object]
    ) -> None:
        start = file.read(4)
        file.seek(0)
        self.file, self.checksum, self.progress = file, checksum, progress
        self.decoder = codecs.getincrementaldecoder(json.detect_encoding(start))("surrogatepass")
        self.block, self.place, self.complete = "", 0, False
        # For messages: what has left memory.
        self.characters, self.lines, self.column = 0, 0, 0
        self.more()

    def more(self) -> None:
        """Read another block, or as much as is in memory if that is more."""
        self._drop()
        content = self.file.read(max(BLOCK, len(self.block)))
        self.complete = not content
        self.progress(len(content))
        self.checksum.update(content)
        if self.complete:
            self.checksum.check()
        self.block += self.decoder.decode(content, final=self.complete)

    def next(self) -> str:
        """The next character, empty at the end."""
        return self.block[self.place : self.place + 1]

    def at_end(self) -> bool:
        """Whether the whole file has been read."""
        return self.complete and self.place == len(self.block)

    def skip_space(self) -> None:
        """Go on to the next character that is not white space."""
        while True:
            self.place = SPACE.match(self.block, self.place).end()
            if self.place < len(self.block) or self.complete:
                return
            self.more()

    def ends(self, bracket: str) -> bool:
        """Go past the bracket, or past a comma to what follows; whether it was the bracket."""
        self.skip_space()
        found = self.next()
        if found not in (",", bracket) or not found:
            raise self.error("Expecting ',' delimiter")
        self.place += 1
        if found == ",":
            self.skip_space()
        return found == bracket

    def string(self) -> str:
        """The text in quotes that comes next."""
        return self._whole(lambda: scanstring(self.block, self.place + 1, True))

    def value(self) -> Any:
        """The value that comes next."""
        return self._whole(lambda: DECODER.raw_decode(self.block, self.place))

    def objects(self) -> list[Any] | None:
        """The objects up to the last cut in memory, and the comma after them; None if there is no
        cut or it is wrong."""
        if not self.complete and len(self.block) - self.place < BLOCK // 2:
            self.more()
        start = max(self.place, len(self.block) - WINDOW)
        cuts = list(CUT.finditer(self.block, start))
        if not cuts:
            return None
        cut = cuts[-1]
        try:
            found = json.loads(f"[{self.block[self.place : cut.start() + 1]}]")
        except ValueError:
            return None
        self.place = cut.end()
        return found

    def entries(self) -> tuple[list[Any], bool]:
        """The entries in memory, at least one, and the commas after them; whether the list ends
        with them."""
        found = []
        while True:
            found.append(self.value())
            if self.ends("]"):
                return found, True
            if not self.complete and len(self.block) - self.place < WINDOW:
                return found, False

    def error(self, message: str) -> ValueError:
        """An error at the present place, worded as by `json.loads`."""
        return self._at(message, self.place)

    def _at(self, message: str, place: int) -> ValueError:
        line = self.lines + self.block.count("\n", 0, place) + 1
        newline = self.block.rfind("\n", 0, place)
        column = place - newline if newline >= 0 else self.column + place + 1
        return ValueError(
            f"{message}: line {line} column {column} (char {self.characters + place})"
        )

    def _whole(self, decode: Any) -> Any:
        """What `decode` finds at the present place; more is read until it is all there."""
        while True:
            try:
                value, end = decode()
            except json.JSONDecodeError as error:
                # A text that has no end in memory is the only error far before the cut.
                may_go_on = error.pos + 16 > len(self.block) or error.msg.startswith("Unterminated")
                if self.complete or not may_go_on:
                    raise self._at(error.msg, error.pos) from None
            else:
                if end < len(self.block) or self.complete:  # a number may go on
                    self.place = end
                    return value
            self.more()

    def _drop(self) -> None:
        """Forget what lies before the present place."""
        gone = self.block[: self.place]
        newline = gone.rfind("\n")
        self.characters += len(gone)
        self.lines += gone.count("\n")
        self.column = len(gone) - newline - 1 if newline >= 0 else self.column + len(gone)
        self.block, self.place = self.block[self.place :], 0
