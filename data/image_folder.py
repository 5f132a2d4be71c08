"""Images to train a backbone on: from a folder tree, one folder per class, or a COCO JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data.coco_json import read_file_names
from data.errors import DataError
from data.file_names import locate_files
from data.image_check import check_images
from data.images import AS_STORED, BadFile, ImageReading
from data.texts import Texts
from data.walk import walk_images


@dataclass(frozen=True)
class ImageFiles:
    """Image files below a folder, each with its class if classes are known."""

    root: Path
    files: Sequence[str]  # relative to root
    classes: tuple[str, ...] = ()  # names; empty: there are no labels
    labels: tuple[int, ...] = ()  # of each file, 0..len(classes) - 1
    reading: ImageReading = AS_STORED
    notes: tuple[str, ...] = ()  # sentences to say at the start
    bad: tuple[BadFile, ...] = ()  # to be skipped when they are read

    def __len__(self) -> int:
        return len(self.files)


def images_of_tree(directory: str | Path, reading: ImageReading = AS_STORED) -> ImageFiles:
    """Every image below a folder, without labels.

    Raises:
        DataError: the folder does not exist or holds no image, or an image is truncated.
    """
    found = walk_images(directory)
    return _checked(directory, found.files, reading, said=found.sentence())


def images_of_coco(
    directory: str | Path,
    annotations: str | Path,
    reading: ImageReading = AS_STORED,
    allow_outside: bool = False,
) -> ImageFiles:
    """The images that a COCO JSON lists, each once and without labels; its boxes are ignored and
    may be missing (as in COCO's own lists of unlabelled images).

    Raises:
        DataError: the JSON is unreadable or lists no image, or an image is missing or truncated;
            see `data.file_names` for names written for another folder.
    """
    names = read_file_names(annotations)
    if not names:
        raise DataError(f"{annotations}: lists no image; give a file that lists some")
    located = locate_files(directory, names, annotations, allow_outside=allow_outside)
    files = dict.fromkeys(located)
    return _checked(directory, list(files), reading)


def images_of_classes(directory: str | Path, reading: ImageReading = AS_STORED) -> ImageFiles:
    """Images in one folder per class (as in torchvision's `ImageFolder`), subfolders included;
    the classes are ordered by name.

    Raises:
        DataError: an image is outside the class folders, or there are fewer than two of them;
            also see `images_of_tree`.
    """
    found = walk_images(directory)
    files = found.files
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
    labels = tuple(number[folder] for folder in folders)
    return _checked(directory, files, reading, classes, labels, found.sentence())


def _checked(
    directory: str | Path,
    files: Sequence[str],
    reading: ImageReading,
    classes: tuple[str, ...] = (),
    labels: tuple[int, ...] = (),
    said: str | None = None,
) -> ImageFiles:
    checked = check_images(directory, files, reading)
    notes = checked.notes if said is None else (said, *checked.notes)
    return ImageFiles(
        Path(directory), Texts.of(files), classes, labels, reading, notes, checked.bad
    )
