"""Which XML files of a VOC folder belong to which split.

Such a folder (`VOCdevkit/VOC2007`) has lists of names in `ImageSets/Main`, for example train.txt.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from data.errors import DataError
from data.label_files import SPLITS, read_lines, split_order
from data.walk import readable_suffixes

OF_ONE_CLASS = re.compile(r".+\s(-1|0|1)")  # such as "000005 -1" in aeroplane_train.txt


@dataclass(frozen=True)
class Listed:
    """The files of one split, repetitions included."""

    xmls: tuple[Path, ...]
    without_xml: tuple[str, ...] = ()  # names in the list that have no XML


class XmlNames:
    """The XML files of a folder by what lists call them.

    Args:
        folder: absolute path, `Annotations`.
        xmls: absolute paths below it.
    """

    def __init__(self, folder: Path, xmls: Iterable[Path]) -> None:
        self.folder = folder
        self._by_end: dict[tuple[str, ...], list[Path]] = {}  # ends of the path without suffix
        for xml in xmls:
            parts = self._parts(xml)
            for start in range(len(parts)):
                self._by_end.setdefault(parts[start:], []).append(xml)

    def _parts(self, xml: Path) -> tuple[str, ...]:
        return xml.relative_to(self.folder).with_suffix("").parts

    def find(self, line: str) -> Path | None:
        """The XML that a line means: a name, a path, or an image and an XML
        (`JPEGImages/a.jpg Annotations/a.xml`).

        Raises:
            DataError: two XML files fit.
        """
        for parts in _readings(line):
            for start in range(len(parts)):
                found = self._by_end.get(parts[start:], [])
                exact = [x for x in found if len(self._parts(x)) == len(parts) - start]
                if len(exact or found) > 1:
                    raise DataError(
                        f"{line!r} in the list may be {found[0]} or {found[1]}; write it with its "
                        "folder"
                    )
                if found:
                    return (exact or found)[0]
        return None


def has_lists(root: Path) -> bool:
    """Whether a folder is one that VOC's development kit would unpack."""
    return (root / "Annotations").is_dir() and bool(_list_files(root))


def splits_by_lists(root: Path, xmls: XmlNames, split: str | None) -> dict[str, Listed]:
    """The splits of a VOC folder by its lists; lists for one class are no splits.

    Args:
        root: folder with `ImageSets`.
        xmls: the XML files.
        split: the only list to read; None: all.

    Raises:
        DataError: there is no such list, it names no image or is for one class; a name in it fits
            two XML files.
    """
    files = _list_files(root)
    if split is not None:
        wanted = SPLITS.get(split.lower(), split)
        names = [name for name in (split, wanted) if name in files]
        path = files[names[0]] if names else root / "ImageSets" / "Main" / f"{split}.txt"
        files = {split: path}
    found: dict[str, Listed] = {}
    for name in sorted(files, key=split_order):
        listed = _read_list(files[name], xmls, required=split is not None)
        if listed is not None:
            found[name] = listed
    return found


def _list_files(root: Path) -> dict[str, Path]:
    folder = root / "ImageSets" / "Main"
    if not folder.is_dir():
        folder = root / "ImageSets"
    return {path.stem: path for path in folder.glob("*.txt")}


def _read_list(path: Path, xmls: XmlNames, required: bool) -> Listed | None:
    """One list; None if it is not required, and is empty or for one class."""
    try:
        lines = [line for line in read_lines(path) if line]
    except DataError:
        raise DataError(
            f"{path}: cannot read this list of images; give an existing --split and, as --voc, "
            "the folder that holds ImageSets and Annotations"
        ) from None
    if not lines and required:
        raise DataError(f"{path}: lists no image; download the image lists again")
    if not lines:
        return None
    try:
        found = [xmls.find(line) for line in lines]
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    # Names may hold blanks and end in a number, so what has an XML is a name.
    if all(x is None and OF_ONE_CLASS.fullmatch(n) for n, x in zip(lines, found, strict=True)):
        if required:
            raise DataError(f"{path}: is a list for one class; give --split train, val or trainval")
        return None
    without = [n for n, x in zip(lines, found, strict=True) if x is None]
    return Listed(
        tuple(xml for xml in found if xml is not None),
        tuple("/".join(_readings(line)[-1]) for line in without),
    )


def _readings(line: str) -> list[tuple[str, ...]]:
    """The parts of a path, as they are and, if it ends like an image or an XML, without that."""
    parts = tuple(filter(None, re.split(r"[/\\]", line)))
    stem, suffix = os.path.splitext(parts[-1]) if parts else ("", "")
    known = suffix.lower() in (*readable_suffixes(), ".xml")
    return [parts, (*parts[:-1], stem)] if known else [parts]
