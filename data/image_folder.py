"""Images to train a backbone on: from a folder tree, one folder per class, or a COCO JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data.coco_json import read_file_names
from data.errors import DataError
from data.file_names import locate_files
from data.images import check_images, list_images


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
    """The images that a COCO JSON lists, each once and without labels; its boxes are ignored and
    may be missing (as in COCO's own lists of unlabelled images).

    Raises:
        DataError: the JSON is unreadable or lists no image, or an image is missing or truncated;
            see `data.file_names` for names written for another folder.
    """
    names = read_file_names(annotations)
    if not names:
        raise DataError(f"{annotations}: lists no image; give a file that lists some")
    return _checked(directory, list(dict.fromkeys(locate_files(directory, names, annotations))))


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
