"""Which XML files of a VOC folder belong to which split.

Such a folder (`VOCdevkit/VOC2007`) has lists of names in `ImageSets/Main`, for example train.txt.
"""

from __future__ import annotations

import os
import re
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from data.errors import DataError
from data.label_files import SPLITS, last_part, read_lines, split_order
from data.walk import readable_suffixes

OF_ONE_CLASS = re.compile(r".+\s(-1|0|1)")  # such as "000005 -1" in aeroplane_train.txt


@dataclass(frozen=True)
class Listed:
    """The files of one split, repetitions included."""

    xmls: tuple[Path, ...]
    without_xml: tuple[str, ...] = ()  # names in the list that have no XML


def has_lists(root: Path) -> bool:
    """Whether a folder is one that VOC's development kit would unpack."""
    return (root / "Annotations").is_dir() and bool(_list_files(root))


def splits_by_lists(root: Path, xmls: Mapping[str, Path], split: str | None) -> dict[str, Listed]:
    """The splits of a VOC folder by its lists; lists for one class are no splits.

    Args:
        root: folder with `ImageSets`.
        xmls: the XML files by their names without suffix.
        split: the only list to read; None: all.

    Raises:
        DataError: there is no such list, it names no image or is for one class.
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


def _read_list(path: Path, xmls: Mapping[str, Path], required: bool) -> Listed | None:
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
    names = [_name(line, xmls) for line in lines]
    if _is_for_one_class(names, xmls):
        if required:
            raise DataError(f"{path}: is a list for one class; give --split train, val or trainval")
        return None
    known = [name for name in names if name in xmls]
    return Listed(
        tuple(xmls[name] for name in known), tuple(name for name in names if name not in xmls)
    )


def _name(line: str, xmls: Mapping[str, Path]) -> str:
    """The name of an XML without its suffix, from a line that may be a path, or an image and an
    XML (`JPEGImages/a.jpg Annotations/a.xml`)."""
    if line in xmls:
        return line
    stem, suffix = os.path.splitext(last_part(line))
    return stem if suffix.lower() in (*readable_suffixes(), ".xml") else last_part(line)


def _is_for_one_class(names: Sequence[str], xmls: Container[str]) -> bool:
    """Names may hold blanks and end in a number, so what has an XML is a name."""
    return bool(names) and all(n not in xmls and OF_ONE_CLASS.fullmatch(n) for n in names)
