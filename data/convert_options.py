"""The options that `python -m data.voc` and `python -m data.convert` share."""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from pathlib import Path

from data.errors import DataError
from data.label_files import read_lines
from data.labelled_images import DIFFICULT


@dataclass(frozen=True)
class ReadOptions:
    """What the user asks of the readers."""

    split: str | None = None  # None: every split that is found
    images_root: Path | None = None  # folder above the images; None: they are in the source
    keep_unlabelled: bool = False  # list images without a label file as images without boxes
    strict: bool = False  # what would be left out is an error
    allow_outside: bool = False  # YOLO: the yaml may lead out of its folder and of images_root
    first_pixel: int | None = None  # VOC: what corners count from; None: guessed


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the shared options to a command line."""
    parser.add_argument(
        "--classes",
        metavar="a,b,c|FILE",
        help="names in the order of the category ids; boxes of others are left out (all names)",
    )
    parser.add_argument(
        "--difficult",
        choices=DIFFICULT,
        default="crowd",
        help="VOC: what to do with difficult objects; crowd: they are ignored (crowd)",
    )
    parser.add_argument(
        "--first-pixel",
        type=int,
        choices=(0, 1),
        help="VOC: corners are edges that count from 0, or pixels that count from 1 (guessed)",
    )
    parser.add_argument(
        "--keep-unlabelled",
        action="store_true",
        help="list images without a label file as images without objects (they are left out)",
    )
    parser.add_argument(
        "--strict", action="store_true", help="stop at the first box or file to be left out"
    )


def read_classes(text: str | None) -> tuple[str, ...] | None:
    """Class names from `a,b,c`, or from a file with one name per line; None stays None.

    Raises:
        DataError: no name, or a name twice; the file is not UTF-8 text.
    """
    if text is None:
        return None
    if os.path.isfile(text):  # also of a list that is too long for a name
        parts = read_lines(Path(text))
    elif text.endswith(".txt"):
        raise DataError(f"--classes {text}: no such file; give names as a,b,c or an existing file")
    else:
        parts = text.split(",")
    names = tuple(part.strip() for part in parts if part.strip())
    if not names or len(set(names)) < len(names):
        raise DataError(f"--classes {text}: names no class, or one twice; give names as a,b,c")
    return names
