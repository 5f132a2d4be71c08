"""Read the files of a labelled folder: decode texts, match names, tell splits, read headers."""

from __future__ import annotations

import codecs
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar
from urllib.parse import unquote

from data.errors import DataError
from data.image_check import read_headers
from data.image_header import Header
from data.images import ImageReading
from data.regular_file import require_regular
from data.walk import readable_suffixes

SPLITS = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
ORDER = ("train", "val", "trainval", "test")
BYTE_ORDER_MARKS = (  # the longer first: UTF-32's starts with UTF-16's
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
SHOWN = ImageReading(exif="apply")  # as viewers, and so many tools, show pictures
TURNED = "images that EXIF turns, with boxes of the turned picture (train with data.exif=apply)"
Files = TypeVar("Files")


def split_of(path: Path, root: Path) -> str:
    """The split that a folder between `root` and the file names, else an empty text."""
    for part in path.relative_to(root).parts[:-1]:
        name = part.lower().removeprefix("obj_").removesuffix("_data")  # CVAT: obj_train_data
        name = re.sub(r"\d{4}$", "", name)  # COCO: train2017
        if name in SPLITS:
            return SPLITS[name]
    return ""


def same_split(one: Path, other: Path) -> bool:
    """Whether two files can belong together: their folders do not name two splits."""
    root = Path(os.path.commonpath([one, other]))
    return len({split_of(one, root), split_of(other, root)} - {""}) < 2


def split_order(name: str) -> tuple[int, str]:
    """Sorts train, val, trainval, test, then any others by name."""
    return (ORDER.index(name) if name in ORDER else len(ORDER), name)


def choose_split(
    found: Mapping[str, Files], wanted: str | None, source: object
) -> dict[str, Files]:
    """The wanted split, or all; files in no split's folder make a split `other` if there are more.

    Raises:
        DataError: there is no such split.
    """
    named = {name or "other" if len(found) > 1 else name: files for name, files in found.items()}
    if wanted is None:
        return named
    name = wanted if wanted in named else SPLITS.get(wanted.lower(), wanted)
    if name not in named:
        splits = ", ".join(sorted(filter(None, named), key=split_order)) or "none"
        raise DataError(f"{source}: has no split {wanted!r}; give --split one of: {splits}")
    return {name: named[name]}


def decode(content: bytes) -> str:
    """A text in UTF-8, or in what its byte order mark says.

    Raises:
        UnicodeDecodeError: it is neither.
    """
    for mark, encoding in BYTE_ORDER_MARKS:
        if content.startswith(mark):
            return content.decode(encoding)
    return content.decode("utf-8")


def read_lines(path: Path) -> list[str]:
    """The stripped lines of a text file, empty ones included.

    Raises:
        DataError: see `read_text`.
    """
    return [line.strip() for line in read_text(path).splitlines()]


def read_text(path: Path) -> str:
    """A text file in UTF-8, or in what its byte order mark says.

    Raises:
        DataError: the file is missing, or not UTF-8.
    """
    require_regular(path)
    try:
        return decode(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); restore it") from None
    except UnicodeDecodeError:
        raise DataError(f"{path}: is not UTF-8 text; save it as UTF-8") from None


def read_headers_of(paths: Iterable[Path]) -> dict[Path, Header | None]:
    """The header of each image; None for files that are missing or no images."""
    files = list(dict.fromkeys(paths))
    found = read_headers(files)
    return {
        file: header if isinstance(header, Header) else None
        for file, header in zip(files, found, strict=True)
    }


class FileIndex:
    """Finds files by the names that other files give them.

    Args:
        files: absolute paths.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = files
        self._by_name: dict[str, list[Path]] = {}
        self._by_stem: dict[str, list[Path]] = {}
        for path in files:
            self._by_name.setdefault(name_key(path.name), []).append(path)
            self._by_stem.setdefault(name_key(path.stem), []).append(path)

    def image(self, name: str, near: Path) -> Path | None:
        """The file of that name, or of that stem if the name does not end like an image.

        Only the last part of the name counts, since folders differ between machines. If several
        files have it, the one whose folders are most like those of `near` is taken; None if there
        is none, or more than one.
        """
        last = last_part(name)
        if os.path.splitext(last)[1].lower() not in readable_suffixes():
            return self.stem(last, near)
        found = self._by_name.get(name_key(last), [])
        return nearest([path for path in found if path.name == last] or found, near)

    def stem(self, stem: str, near: Path) -> Path | None:
        """The file that is called so without its suffix; chosen as by `image`."""
        found = self._by_stem.get(name_key(stem), [])
        return nearest([path for path in found if path.stem == stem] or found, near)


def nearest(found: Sequence[Path], near: Path) -> Path | None:
    """The file that shares most folders with `near` and has fewest others; None if there is none,
    or more than one."""
    if len(found) < 2:
        return found[0] if found else None
    beside = [path for path in found if path.parent == near.parent]
    if len(beside) == 1:
        return beside[0]
    folders = Counter(near.parent.parts)
    likeness = [
        ((Counter(path.parent.parts) & folders).total(), -len(path.parts)) for path in found
    ]
    best = max(likeness)
    return found[likeness.index(best)] if likeness.count(best) == 1 else None


def name_key(name: str) -> str:
    """What two spellings of a file name share: capitals, `%20` and composed letters (macOS writes
    an accent as a letter of its own) make no difference."""
    return unicodedata.normalize("NFC", unquote(name)).casefold()


def last_part(name: str) -> str:
    """The file's name in a path of any system."""
    return re.split(r"[/\\]", name)[-1]
