"""The commands that README, docs and the heads of the configs give, as a reader would type them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "configs").glob("*.yaml")),
]
COMMAND = re.compile(r"(?:python3? |torchrun |make |pip )")
FENCE = re.compile(r"^```\w*\n(.*?)^```", re.DOTALL | re.MULTILINE)
PLACES = {"N": "1", "...": None}  # what stands for a value: this one, or nothing


class Documented(NamedTuple):
    """A command and the page that it is on."""

    page: str
    text: str

    @property
    def words(self) -> list[str]:
        """Split as a shell does, with values in place of what stands for one."""
        words = [PLACES.get(word, word) for word in shlex.split(self.text)]
        return [word for word in words if word is not None]


def documented() -> list[Documented]:
    """All commands, each once per page."""
    found = [Documented(str(p.relative_to(ROOT)), text) for p in PAGES for text in _commands(p)]
    return list(dict.fromkeys(found))


def _commands(page: Path) -> Iterator[str]:
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".yaml":  # in comments, indented
        lines = "\n".join(line[1:] for line in text.splitlines() if line.startswith("#"))
        yield from _lines("\n".join(line for line in lines.splitlines() if line[:3] == "   "))
        return
    for block in FENCE.findall(text):
        yield from _lines(block)
    for inline in re.findall(r"`([^`]+)`", FENCE.sub("", text)):
        if COMMAND.match(inline):
            yield " ".join(inline.split())


def _lines(block: str) -> Iterator[str]:
    """The lines that are commands, put together where one goes on, without comments."""
    for line in re.sub(r"\\\n", " ", block).splitlines():
        line = " ".join(re.sub(r"\s#.*", "", line).split())
        if COMMAND.match(line):
            yield line
