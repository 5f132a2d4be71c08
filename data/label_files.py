"""Find and read the files of a labelled folder: walk it, decode texts, match names, read sizes."""

from __future__ import annotations

import codecs
import functools
import os
import re
import struct
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from urllib.parse import unquote

from PIL import Image
from tqdm import tqdm

from data.counting import more_like_it
from data.errors import DataError
from data.images import UNREADABLE

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
ORIENTATION = 0x0112  # EXIF tag; 1 is upright, up to 8
SIDES_SWAPPED = (5, 6, 7, 8)
NO_PICTURES = ("EPS", "MPEG", "PDF")  # formats that Pillow cannot decode by itself
# What Pillow raises for EXIF blocks that are broken, which says nothing about the picture.
BROKEN_EXIF = (*UNREADABLE, TypeError, LookupError, struct.error)
TURNED = "images that EXIF turns, with boxes of the turned picture (train with data.exif=apply)"
Files = TypeVar("Files")


@functools.cache
def image_suffixes() -> frozenset[str]:
    """Suffixes of the image files that Pillow reads, in lower case."""
    known = Image.registered_extensions().items()
    return frozenset(s for s, kind in known if kind in Image.OPEN and kind not in NO_PICTURES)


def files_below(root: Path, suffixes: Collection[str]) -> list[Path]:
    """Files with one of the suffixes (lower case), sorted. Hidden files and folders and
    `__MACOSX` are left out; links to folders are followed once."""
    found: list[Path] = []
    visited: set[str] = set()
    for folder, folders, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        folders[:] = sorted(name for name in folders if name[0] != "." and name != "__MACOSX")
        if real in visited:
            folders[:] = []
            continue
        visited.add(real)
        found += [
            Path(folder, name)
            for name in names
            if name[0] != "." and os.path.splitext(name)[1].lower() in suffixes
        ]
    return sorted(found)


def split_of(path: Path, root: Path) -> str:
    """The split that a folder between `root` and the file names, else an empty text."""
    for part in path.relative_to(root).parts[:-1]:
        name = part.lower().removeprefix("obj_").removesuffix("_data")  # CVAT: obj_train_data
        name = re.sub(r"\d{4}$", "", name)  # COCO: train2017
        if name in SPLITS:
            return SPLITS[name]
    return ""


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
    try:
        return decode(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); restore it") from None
    except UnicodeDecodeError:
        raise DataError(f"{path}: is not UTF-8 text; save it as UTF-8") from None


@dataclass(frozen=True)
class ShownSize:
    """The size of an image as viewers show it."""

    height: int
    width: int
    orientation: int = 1  # of EXIF; 2 to 8: viewers turn or mirror the stored pixels

    @property
    def stored(self) -> tuple[int, int]:
        """Height and width of the stored pixels."""
        swapped = self.sides_swapped
        return (self.width, self.height) if swapped else (self.height, self.width)

    @property
    def sides_swapped(self) -> bool:
        """Whether the stored pixels have this height as their width."""
        return self.orientation in SIDES_SWAPPED


def shown_sizes(paths: Iterable[Path]) -> dict[Path, ShownSize | None]:
    """Sizes from the headers; None for files that are missing or no images."""
    paths = list(dict.fromkeys(paths))
    with ThreadPoolExecutor(max_workers=8) as pool:
        sizes = tqdm(
            pool.map(_shown_size, paths), "image sizes", len(paths), unit="image", leave=False
        )
        return dict(zip(paths, sizes, strict=True))


def _shown_size(path: Path) -> ShownSize | None:
    try:
        with Image.open(path) as image:
            orientation = _orientation(image)
            width, height = image.size
    except UNREADABLE:
        return None
    if orientation in SIDES_SWAPPED:
        width, height = height, width
    return ShownSize(height, width, orientation)


def _orientation(image: Image.Image) -> int:
    if image.format == "TIFF":  # Pillow turns it while it decodes it
        return 1
    try:
        value = image.getexif().get(ORIENTATION, 1)
    except BROKEN_EXIF:
        return 1
    return value if value in range(2, 9) else 1


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
        if os.path.splitext(last)[1].lower() not in image_suffixes():
            return self.stem(last, near)
        found = self._by_name.get(name_key(last), [])
        return _nearest([path for path in found if path.name == last] or found, near)

    def stem(self, stem: str, near: Path) -> Path | None:
        """The file that is called so without its suffix; chosen as by `image`."""
        found = self._by_stem.get(name_key(stem), [])
        return _nearest([path for path in found if path.stem == stem] or found, near)


def _nearest(found: Sequence[Path], near: Path) -> Path | None:
    if len(found) < 2:
        return found[0] if found else None
    beside = [path for path in found if path.parent == near.parent]
    if len(beside) == 1:
        return beside[0]
    folders = Counter(near.parent.parts)
    shared = [(Counter(path.parent.parts) & folders).total() for path in found]
    return found[shared.index(max(shared))] if shared.count(max(shared)) == 1 else None


def name_key(name: str) -> str:
    """What two spellings of a file name share: capitals, `%20` and composed letters (macOS writes
    an accent as a letter of its own) make no difference."""
    return unicodedata.normalize("NFC", unquote(name)).casefold()


def last_part(name: str) -> str:
    """The file's name in a path of any system."""
    return re.split(r"[/\\]", name)[-1]


def raise_first(problems: Sequence[DataError]) -> None:
    """Raise the first problem, if any, and say how many there are."""
    if problems:
        more = more_like_it(len(problems) - 1)
        raise DataError(f"{problems[0]}{more}")
