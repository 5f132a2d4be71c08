"""Find the files that the `file_name` entries of a COCO JSON mean.

Tools write names for another machine or another folder: `images\\a.png`, `C:\\work\\images\\a.png`,
`train/a.png`, `a%20b.png`, `https://host/upload/1/0f3a9c21-a.png`. A name is taken as it is where
that file exists. Else `\\` is read as `/`, percent codes are decoded, `.` and `..` are resolved,
case is ignored if need be, and the one file is taken whose path ends like the name, or the other
way round: leading folders may be missing on either side, unless other names with the same folders
exist as they are. Two files that fit, or two names that fit one file, are an error: there is no
guess.

A name that leads out of the folder of the images, by `..` or as an absolute path, is an error where
such a file exists, unless it is allowed: a file of annotations from elsewhere must not choose what
is read. Links in the folder are the user's own, and are followed.
"""

from __future__ import annotations

import os
import posixpath
import re
import unicodedata
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from urllib.parse import unquote, urlsplit

from data.counting import more_like_it
from data.errors import DataError
from data.plain_text import printable
from data.walk import list_images

Parts = tuple[str, ...]
UPLOAD_PREFIX = re.compile(r"^[0-9a-f]{8}-(?=.)")  # Label Studio puts it before an upload's name


def locate_files(
    directory: str | Path,
    names: Sequence[str],
    listed_in: str | Path,
    missing_ok: bool = False,
    allow_outside: bool = False,
) -> list[str]:
    """The existing file of each name, relative to `directory` where it lies below it.

    Each folder that occurs in the names is listed once. Only if a file is missing, all images below
    `directory` are listed.

    Args:
        directory: folder of the images.
        names: `file_name` of each image.
        listed_in: the file that lists the names, for messages.
        missing_ok: leave a name that no file fits as it is (one that leads out of the folder:
            without its way there); otherwise it is an error.
        allow_outside: also take files outside of the folder, where a name leads there.

    Raises:
        DataError: there is no such folder, no file fits a name, two fit it, or two names fit the
            same file; or a file is outside of the folder.
    """
    folder = _Folder(Path(directory))
    if not folder.root.is_dir():
        raise DataError(
            f"{directory}: no such directory; set data.*.images to the folder of the images"
        )
    inside = [folder.inside(name) for name in names]
    found = [file if file is not None and folder.holds(file) else None for file in inside]
    outside = [i for i, file in enumerate(inside) if file is None and folder.holds(names[i])]
    if outside and not allow_outside:
        raise DataError(_leads_out(folder.root, [names[i] for i in outside], listed_in))
    for i in outside:
        found[i] = names[i]
    if None in found:
        found = _fill_in(folder, names, found, listed_in)
        _check_apart(folder.root, names, found, listed_in)
    lost = [name for name, file in zip(names, found, strict=True) if file is None]
    if lost and not missing_ok:
        raise DataError(_missing(folder.root, lost, listed_in))
    rows = zip(names, inside, found, strict=True)
    return [_as_it_is(name, there) if file is None else file for name, there, file in rows]


def _as_it_is(name: str, inside: str | None) -> str:
    """The name of a missing file; nothing outside of the folder may be read in its place."""
    return name if inside is not None else "/".join(_parts(name)) or "_"


def _fill_in(
    folder: _Folder, names: Sequence[str], found: Sequence[str | None], listed_in: str | Path
) -> list[str | None]:
    """`found`, with the files of names that do not exist as they are written, where one fits."""
    # Where other names with the same folders exist, a file that is missing there is missing: one
    # of the same name in another folder shows something else.
    exact = {_parts(name)[:-1] for name, file in zip(names, found, strict=True) if file}
    return [
        folder.only_fit(name, _parts(name)[:-1] not in exact, listed_in) if file is None else file
        for name, file in zip(names, found, strict=True)
    ]


class _Folder:
    """A folder of images: which files are there, listed when they are first asked for."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.listed: dict[str, frozenset[str]] = {}  # subfolder -> the names in it

    def holds(self, name: str) -> bool:
        """Whether the file `name` exists, exactly as it is written."""
        head, tail = os.path.split(name)
        if head not in self.listed:
            self.listed[head] = _names_in(self.root / head)
        return tail in self.listed[head]

    def inside(self, name: str) -> str | None:
        """`name` relative to the root, without `./`; None if it leads out of the root."""
        if not (".." in name or ":" in name or os.path.isabs(name)):  # most names
            return Path(name).as_posix() if "./" in name or "//" in name else name
        root = os.path.abspath(self.root)
        path = os.path.normpath(os.path.join(root, name))
        if not Path(path).is_relative_to(root):  # perhaps the root is a link, or has another name
            head, tail = os.path.split(path)
            root, path = os.path.realpath(root), os.path.join(_real(head), tail)
        if path == root or not Path(path).is_relative_to(root):
            return None
        return Path(path).relative_to(root).as_posix()

    def only_fit(self, name: str, other_folders: bool, listed_in: str | Path) -> str | None:
        """The one file that fits a name which does not exist as it is written, or None."""
        files = self._fitting(name, other_folders)
        if len(files) > 1:
            raise DataError(
                f"{listed_in}: the file_name {_short(name)} fits {len(files)} files below "
                f"{self.root}, {files[0]} and {files[1]} among them; correct it to name one of them"
            )
        return files[0] if files else None

    def _fitting(self, name: str, other_folders: bool) -> list[str]:
        """The files that fit best: the same path before the end of one (only if `other_folders`),
        the same case before another."""
        for wanted in _readings(name):
            candidates = self._by_last_part.get(wanted[-1].casefold(), [])
            for part in (False, True) if other_folders else (False,):
                for fold in (False, True):
                    files = [f for f, parts in candidates if _same(wanted, parts, part, fold)]
                    if files:
                        return files
        return []

    @cached_property
    def _by_last_part(self) -> dict[str, list[tuple[str, Parts]]]:
        found: dict[str, list[tuple[str, Parts]]] = {}
        for file in list_images(self.root):
            parts = _parts(file)
            found.setdefault(parts[-1].casefold(), []).append((file, parts))
        return found


def _real(folder: str) -> str:
    try:
        return os.path.realpath(folder)
    except ValueError:  # a name that no system takes
        return folder


def _names_in(folder: Path) -> frozenset[str]:
    try:
        return frozenset(os.listdir(folder))
    except (OSError, ValueError):  # no such folder, or a name that no system takes
        return frozenset()


def _readings(name: str) -> Iterator[Parts]:
    """What a name can mean, the likeliest first."""
    if "?d=" in name:  # a local file in Label Studio: /data/local-files/?d=images/a.png
        name = name.split("?d=", 1)[1]
    elif "://" in name:
        name = _url_path(name)
    parts = _parts(name)
    if parts:
        yield parts
        original = UPLOAD_PREFIX.sub("", parts[-1])
        if original != parts[-1]:
            yield (*parts[:-1], original)


def _url_path(url: str) -> str:
    try:
        return urlsplit(url).path
    except ValueError:
        return url


def _parts(path: str) -> Parts:
    """The parts of a path, decoded, with accents composed (macOS writes them decomposed)."""
    text = unicodedata.normalize("NFC", unquote(path)).replace("\\", "/")
    parts = (part.strip() for part in posixpath.normpath(text).split("/"))
    return tuple(part for part in parts if part not in ("", ".", ".."))


def _same(wanted: Parts, parts: Parts, part: bool, fold: bool) -> bool:
    """Whether two paths are equal, or (`part`) equal from the end of the shorter one."""
    if part:
        length = min(len(wanted), len(parts))
        wanted, parts = wanted[-length:], parts[-length:]
    if fold:
        return [p.casefold() for p in wanted] == [p.casefold() for p in parts]
    return wanted == parts


def _check_apart(
    root: Path, names: Sequence[str], found: Sequence[str | None], listed_in: str | Path
) -> None:
    """Different names must not have been found to be the same file."""
    first: dict[str, str] = {}
    for name, file in zip(names, found, strict=True):
        if file is None:
            continue
        other = first.setdefault(file, name)
        if other != name and _parts(other) != _parts(name):
            raise DataError(
                f"{listed_in}: the file names {_short(other)} and {_short(name)} both fit "
                f"{root / file}; correct them, or add the image that is missing"
            )


def _leads_out(root: Path, names: Sequence[str], listed_in: str | Path) -> str:
    more = more_like_it(len(names) - 1)
    return (
        f"{listed_in}: the file_name {_short(names[0])} leads out of the folder of the images, "
        f"{root}; give a folder that holds all of them, or, if you trust the file, set "
        f"data.allow_outside=true (a command: --allow-outside){more}"
    )


def _missing(root: Path, names: Sequence[str], listed_in: str | Path) -> str:
    name = names[0]
    ends = [end for parts in _readings(name) for end in ("/".join(parts), parts[-1])]
    sought = " or ".join(dict.fromkeys(map(_cut, ends)))
    more = more_like_it(len(names) - 1)
    return (
        f"{root / _cut(name)}: image is missing; {listed_in} lists it, and no other file of that "
        f"folder fits (looked for {sought}, upper and lower case alike); restore it or remove its "
        f"entry, or give the folder that holds it{more}"
    )


def _cut(text: str) -> str:
    """A name in one line and cut to a bearable length, for messages."""
    line = printable(text[:120])
    return line if len(text) <= 120 else f"{line}..."


def _short(name: str) -> str:
    return f"'{_cut(name)}'"
