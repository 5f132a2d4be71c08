"""Find the files below a folder, images above all, and count what is left out."""

from __future__ import annotations

import functools
import os
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageFile

from data.errors import DataError
from data.plain_text import printable

HIDDEN = "hidden"  # the key of hidden and system entries among those that are left out
NO_SUFFIX = "without a suffix"
# Besides names that begin with a dot (`._a.jpg`, `.ipynb_checkpoints`, `.DS_Store`): what systems,
# archives and network drives put among a user's files, in lower case.
SYSTEM = frozenset({
    "__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "@eadir", "#recycle", "#snapshot",
    "$recycle.bin", "system volume information", "lost+found", "lost.dir", "found.000",
})  # fmt: skip
# Pillow opens their headers, but needs another program for the picture, or has no decoder at all.
NO_PICTURES = frozenset({"EPS", "MPEG"})
BY_OTHERS = frozenset({"MPO"})  # formats without an opener of their own: JPEG's opens them
SHOWN = 6  # kinds of files that are named; the rest is summed up


@dataclass(frozen=True)
class Listing:
    """The images below a folder."""

    files: tuple[str, ...]  # sorted, relative to the folder, with `/` on every system
    left_out: Mapping[str, int]  # entries by suffix in lower case, by NO_SUFFIX or by HIDDEN

    def sentence(self) -> str | None:
        """Such as `left out: 3 .txt, 2 .xml, 4 hidden`; None if nothing was left out."""
        if not self.left_out:
            return None
        kinds = [(k, n) for k, n in self.left_out.items() if k not in (HIDDEN, NO_SUFFIX)]
        kinds.sort(key=lambda kind: (-kind[1], kind[0]))
        parts = [f"{number:,} {printable(suffix)}" for suffix, number in kinds[:SHOWN]]
        if len(kinds) > SHOWN:
            parts.append(f"{sum(number for _, number in kinds[SHOWN:]):,} of other kinds")
        parts += [f"{self.left_out[k]:,} {k}" for k in (NO_SUFFIX, HIDDEN) if k in self.left_out]
        return f"left out: {', '.join(parts)}"


def list_images(directory: str | Path) -> list[str]:
    """The files of `walk_images`."""
    return list(walk_images(directory).files)


def walk_images(directory: str | Path) -> Listing:
    """Image files below `directory`, by their suffix: every one that Pillow reads.

    Hidden and system files and folders are left out. Links are followed, but no folder is entered
    twice, and none that holds the link or `directory` itself, so links cannot lead in a circle. A
    file that can be reached by links alone has the path through the first of them by name.

    Raises:
        DataError: the directory does not exist or holds no image, or a folder cannot be opened.
    """
    root = Path(directory)
    if not root.is_dir():
        raise DataError(f"{root}: no such directory; give the folder that holds the images")
    files, left_out = _walk(root, readable_suffixes())
    listing = Listing(tuple(sorted(files)), dict(left_out))
    if not files:
        found = listing.sentence() or "it is empty"
        raise DataError(
            f"{root}: holds no image ({found}); give a folder of files that Pillow reads, such as "
            ".jpg, .png, .tif or .webp, and convert others"
        )
    return listing


def files_below(directory: str | Path, suffixes: Collection[str]) -> list[Path]:
    """Files with one of the suffixes (lower case), sorted; none if there is no such folder.

    Links, hidden and system files are treated as by `walk_images`.

    Raises:
        DataError: a folder cannot be opened.
    """
    root = Path(directory)
    return sorted(root / file for file in _walk(root, suffixes)[0]) if root.is_dir() else []


@functools.cache
def readable_suffixes() -> frozenset[str]:
    """Suffixes in lower case of the formats that Pillow, as it is installed, reads as pictures."""
    suffixes = Image.registered_extensions()  # also loads Pillow's plug-ins
    formats = {name for name, (opener, _) in Image.OPEN.items() if not _is_stub(opener)}
    formats = (formats | BY_OTHERS) - NO_PICTURES
    return frozenset(suffix.lower() for suffix, name in suffixes.items() if name in formats)


def _is_stub(opener: object) -> bool:
    return isinstance(opener, type) and issubclass(opener, ImageFile.StubImageFile)


def _walk(root: Path, suffixes: Collection[str]) -> tuple[list[str], Counter[str]]:
    """Relative paths of the files with these suffixes, and how many others of each kind."""
    files: list[str] = []
    left_out: Counter[str] = Counter()
    top = os.path.realpath(root)
    seen: set[str] = set()
    pending, links = [(str(root), top)], []  # (path, real path) of folders
    while pending or links:
        if not pending:  # links come last, so that a folder's own path has precedence
            links.sort(reverse=True)
            pending.append(links.pop())
        folder, real = pending.pop()
        if real in seen:
            continue
        seen.add(real)
        for entry in _entries(folder):
            kind = os.path.splitext(entry.name)[1].lower()
            if entry.name.startswith(".") or entry.name.lower() in SYSTEM:
                left_out[HIDDEN] += 1
            elif _is_folder(entry):
                target = os.path.realpath(entry.path)
                if target == os.path.join(real, entry.name):
                    pending.append((entry.path, target))
                elif not _holds(target, real) and not _holds(target, top):
                    links.append((entry.path, target))
            elif kind in suffixes and (_is_file(entry) or _is_dangling(entry)):
                files.append(Path(entry.path).relative_to(root).as_posix())
            else:
                left_out[kind or NO_SUFFIX] += 1
    return files, left_out


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise DataError(
            f"{folder}: this folder cannot be opened ({error.strerror}); allow reading it or move "
            "it away from the images"
        ) from None


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:  # a link to itself
        return False


def _is_dangling(entry: os.DirEntry[str]) -> bool:
    """Whether it is a link to a file that is missing: reading it names the file."""
    return entry.is_symlink() and not os.path.exists(entry.path)


def _holds(folder: str, path: str) -> bool:
    """Whether `path` is `folder` or lies below it; both are real paths."""
    return Path(path).is_relative_to(folder)
