"""What a YOLO data set consists of: class names and the images of its splits, from a `data.yaml`,
darknet's `obj.data`, or the folders alone.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from data.errors import DataError
from data.label_files import (
    SPLITS,
    choose_split,
    read_lines,
    read_text,
    split_of,
    split_order,
)
from data.limited_yaml import TextLoader
from data.walk import files_below, readable_suffixes

NAME_FILES = ("classes.txt", "obj.names", "predefined_classes.txt")  # or any other .names


@dataclass
class YoloSet:
    """A data set before its labels are read."""

    home: Path  # folder of the yaml, or the source
    texts_below: bool  # whether labels may be anywhere in `home`, since no file says where
    names: dict[int, str] | None  # of the classes, by the number in the labels; None: not found
    images: dict[str, list[Path]]  # by split
    keypoints: bool = False  # whether labels go on with keypoints after the box
    remarks: list[str] = field(default_factory=list)


def read_yolo_set(
    source: Path, images_root: Path | None = None, allow_outside: bool = False
) -> YoloSet:
    """Find out what a YOLO data set consists of.

    Args:
        source: a yaml or `.data` file, or the folder of the data set.
        images_root: folder of the images if they are not in the source and no file says where.
        allow_outside: whether the yaml, and lists that it names, may lead out of both folders.

    Raises:
        DataError: the yaml cannot be used, or there is more than one; or no image is found.
    """
    described = source if source.is_file() else _description_file(source)
    if described is None:
        above = images_root or source
        images: dict[str, list[Path]] = {}
        for path in files_below(above, readable_suffixes()):
            images.setdefault(split_of(path, above), []).append(path)
        return _with_names(YoloSet(source, True, None, choose_split(images, None, source)))
    content = _read_description(described)
    places = _Places(described, content, images_root, allow_outside)
    result = YoloSet(described.parent, False, _names(described, content, places), {})
    result.keypoints = "kpt_shape" in content
    result.remarks.append(f"described by {described}")
    count = content.get("nc", content.get("classes"))
    if result.names and count is not None and str(count) != str(len(result.names)):
        result.remarks.append(f"note: it says nc {count}, but names {len(result.names)} classes")
    for key in sorted(SPLITS, key=lambda key: split_order(SPLITS[key])):
        for entry in _texts(described, content, key):
            _add_entry(result, SPLITS[key], entry, places)
    if not any(result.images.values()):
        missing = "; ".join(result.remarks[1:]) or "it has no train, val or test"
        raise DataError(f"{described}: no image found ({missing}); correct its paths")
    if result.images.get("val") and result.images["val"] == result.images.get("train"):
        result.remarks.append("note: train and val are the same images")
    return _with_names(result)


def description_files(folder: Path) -> list[Path]:
    """The files directly in a folder that describe a data set."""
    yamls = [path for path in sorted(folder.iterdir()) if path.suffix in (".yaml", ".yml")]
    found = [path for path in yamls if {"names", "train"} & _read_description(path).keys()]
    return found or sorted(folder.glob("*.data"))


def _description_file(folder: Path) -> Path | None:
    found = description_files(folder)
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise DataError(f"{folder}: holds several descriptions ({names}); give one instead of it")
    return found[0] if found else None


def _read_description(path: Path) -> dict[str, Any]:
    """All values are texts; see `TextLoader`."""
    text = read_text(path)
    if path.suffix == ".data":  # darknet: lines of `key = value`
        pairs = (line.split("=", 1) for line in text.splitlines() if "=" in line)
        return {key.strip(): value.strip() for key, value in pairs}
    try:
        content = yaml.load(text, TextLoader)
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{path}: not readable as YAML ({reason}); correct it") from None
    return content if isinstance(content, dict) else {}


def _texts(path: Path, content: Mapping[str, Any], key: str) -> list[str]:
    """The text of a key, or the texts in its list."""
    value = content.get(key) or []
    entries = value if isinstance(value, list) else [value]
    if not all(isinstance(entry, str) for entry in entries):
        raise DataError(f"{path}: {key} is neither a path nor a list of paths; correct it")
    return entries


def _names(path: Path, content: Mapping[str, Any], places: _Places) -> dict[int, str] | None:
    """`names` as a list, as a mapping from number to name, or as a file with one name per line."""
    names = content.get("names")
    if not names:
        return None
    if isinstance(names, str):
        file = places.find(names)
        if file is None or not file.is_file():
            raise DataError(f"{path}: names is {names!r}, no list and no file; list the names")
        names = [line for line in read_lines(file) if line]
    pairs = list(names.items() if isinstance(names, dict) else enumerate(names))
    if not all(isinstance(name, str) and name.strip() for _, name in pairs):
        raise DataError(f"{path}: one of the names is empty or no text; correct it")
    try:
        numbered = {int(number): name.strip() for number, name in pairs}
    except ValueError:
        raise DataError(f"{path}: a key of names is not a class number; correct it") from None
    if len(numbered) < len(pairs):
        raise DataError(f"{path}: names has a class number twice; give each one name")
    return numbered


def _with_names(result: YoloSet) -> YoloSet:
    """Look for a file of class names if the description has none."""
    if result.names is None:
        texts = files_below(result.home, {".txt", ".names"})
        files = [p for p in texts if p.name.lower() in NAME_FILES or p.suffix == ".names"]
        for path in sorted(files, key=lambda path: len(path.parts))[:1]:
            result.names = dict(enumerate(line for line in read_lines(path) if line))
            result.remarks.append(f"class names from {path}")
    return result


def _add_entry(result: YoloSet, split: str, entry: str, places: _Places) -> None:
    """Add the images of a folder, or of a text file with one path per line, to a split."""
    place = places.find(entry)
    if place is None:
        result.remarks.append(f"left out: {split}, since {entry} was not found")
        return
    usual = Path(os.path.abspath(result.home / (places.root or "") / entry.strip()))
    if place != usual:
        result.remarks.append(f"guessed: {split} is {place}, since {usual} is not there")
    images = result.images.setdefault(split, [])
    if place.is_dir():
        images += files_below(place, readable_suffixes())
        return
    lines = [line for line in read_lines(place) if line]
    found = [places.find_listed(line, place) for line in lines]
    images += [path for path in found if path is not None]
    if None in found:
        first = lines[found.index(None)]
        result.remarks.append(
            f"left out: images in {place} that were not found: {found.count(None):,} "
            f"(first: {first})"
        )


class _Places:
    """Finds the files and folders that a description and its lists name.

    Args:
        described: the description.
        content: of it; `path` is the folder that its paths are relative to.
        images_root: another folder that files may lie in.
        allow_outside: whether they may lie outside of it and of the description's folder.

    Raises:
        DataError: `path` is no text.
    """

    def __init__(
        self,
        described: Path,
        content: Mapping[str, Any],
        images_root: Path | None,
        allow_outside: bool,
    ) -> None:
        self.described, self.home, self.allow_outside = described, described.parent, allow_outside
        self.root = content.get("path")
        if not isinstance(self.root, (str, type(None))):
            raise DataError(f"{described}: path is no text; correct it")
        self.folders = [self.home] if images_root is None else [self.home, images_root]

    def find(self, entry: str) -> Path | None:
        """The existing file or folder that a path in the description means."""
        return self._inside(entry, self.described, _locate(entry, self.home, self.root))

    def find_listed(self, line: str, listed_in: Path) -> Path | None:
        """The existing image that a line of a list means."""
        found = _locate(line, listed_in.parent, str(self.home), self.root)
        return self._inside(line, listed_in, found)

    def _inside(self, entry: str, named_in: Path, found: Path | None) -> Path | None:
        if found is None or self.allow_outside or any(_holds(f, found) for f in self.folders):
            return found
        raise DataError(
            f"{named_in}: {entry[:120]!r} leads out of the folder {self.home}, to {found}; if you "
            "trust the file, add --allow-outside"
        )


def _holds(folder: Path, path: Path) -> bool:
    """Whether a path is in a folder; links in the folder are the user's own, and are followed."""
    below = path.is_relative_to(os.path.abspath(folder))
    return below or Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def _locate(entry: str, home: Path, *roots: str | None) -> Path | None:
    """The existing file or folder that a path means.

    It is relative to one of the roots, which are themselves relative to `home`, or to `home`. Paths
    written on another machine, and Roboflow's `../train/images`, which means `train/images`, are
    found by their last parts.
    """
    parts = Path(entry.strip().replace("\\", "/")).parts
    bases = [home / root.strip().replace("\\", "/") for root in roots if root] + [home]
    for start in range(max(1, len(parts))):  # `.` has no parts
        if start and parts[start - 1].lower() in SPLITS:
            break  # test/images is not images
        for base in bases:
            path = Path(os.path.abspath(base.joinpath(*parts[start:])))
            if os.path.exists(path):  # also false for a name that no system takes
                return path
    return None
