"""Images to train a backbone on: from a folder tree, one folder per class, or a COCO JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.errors import DataError
from data.images import check_images, list_images
from data.json_files import read_json


@dataclass(frozen=True)
class ImageFiles:
    """Image files below a folder, each with its class if classes are known."""

    root: Path
    files: tuple[str, ...]  # relative to root
    classes: tuple[str, ...] = ()  # names; empty: there are no labels
    labels: tuple[int, ...] = ()  # of each file, 0..len(classes) - 1

    def __len__(self) -> int:
        return len(self.files)


def images_of_tree(directory: str | Path) -> ImageFiles:
    """Every image below a folder, without labels.

    Raises:
        DataError: the folder does not exist or holds no image, or an image is truncated.
    """
    return _checked(directory, list_images(directory))


def images_of_coco(directory: str | Path, annotations: str | Path) -> ImageFiles:
    """The images that a COCO JSON lists, without labels; its boxes are ignored and may be
    missing (as in COCO's own lists of unlabelled images).

    Raises:
        DataError: the JSON is unreadable or lists no image, or an image is missing or truncated.
    """
    content = read_json(annotations)
    entries = content.get("images") if isinstance(content, dict) else None
    if not isinstance(entries, list) or not entries:
        raise DataError(f"{annotations}: has no list 'images' with an entry; give a COCO JSON")
    return _checked(directory, [_file_name(annotations, entry) for entry in entries])


def _file_name(annotations: str | Path, entry: Any) -> str:
    name = entry.get("file_name") if isinstance(entry, dict) else None
    if not isinstance(name, str):
        raise DataError(
            f"{annotations}: an entry of 'images' has no 'file_name' ({json.dumps(entry)[:80]}); "
            "add it"
        )
    return name


def images_of_classes(directory: str | Path) -> ImageFiles:
    """Images in one folder per class (as in torchvision's `ImageFolder`), subfolders included;
    the classes are ordered by name.

    Raises:
        DataError: an image is outside the class folders, or there are fewer than two of them;
            also see `images_of_tree`.
    """
    files = list_images(directory)
    stray = next((file for file in files if "/" not in file), None)
    if stray is not None:
        raise DataError(
            f"{directory}/{stray}: lies in no class folder; put the images of each class into a "
            "folder of its own, CLASS/IMAGE"
        )
    folders = [file.split("/")[0] for file in files]
    classes = tuple(sorted(set(folders)))
    if len(classes) < 2:
        raise DataError(
            f"{directory}: has images of only one class, {classes[0]!r}; give the folder that "
            "holds the class folders"
        )
    number = {name: label for label, name in enumerate(classes)}
    return _checked(directory, files, classes, tuple(number[folder] for folder in folders))


def _checked(
    directory: str | Path,
    files: Sequence[str],
    classes: tuple[str, ...] = (),
    labels: tuple[int, ...] = (),
) -> ImageFiles:
    check_images(directory, files)
    return ImageFiles(Path(directory), tuple(files), classes, labels)
