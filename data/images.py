"""Read image files, with errors that name the file."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np
from PIL import Image, UnidentifiedImageError

from data.errors import DataError
from data.walk import list_images as list_images  # finding and reading go together for callers

END_MARKERS = {".jpg": b"\xff\xd9", ".jpeg": b"\xff\xd9", ".png": b"IEND"}
# What Pillow raises for files that are missing, cut off or not images.
UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
Result = TypeVar("Result")


def read_image(path: str | Path) -> Image.Image:
    """Decode an image file as 8-bit RGB, whatever it was (grey, palette, RGBA, CMYK, 16 bits).

    The EXIF orientation is not applied: COCO-style boxes refer to the stored pixels.

    Raises:
        DataError: the file is missing, truncated or not an image.
    """
    return _decode(path, path)


def read_bytes(path: str | Path) -> bytes:
    """An image file as it is on disk, for `decode_image`.

    Raises:
        DataError: the file is missing or cannot be read.
    """
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise _unusable(path, error) from None


def decode_image(content: bytes, path: str | Path) -> Image.Image:
    """`read_image` of a file whose bytes have been read already; errors name `path`."""
    return _decode(io.BytesIO(content), path)


def _decode(source: str | Path | BinaryIO, path: str | Path) -> Image.Image:
    try:
        with Image.open(source) as image:
            image.load()
            return _to_rgb(image)
    except UNREADABLE as error:
        raise _unusable(path, error) from None


def _unusable(path: str | Path, error: Exception) -> DataError:
    if isinstance(error, FileNotFoundError):
        return DataError(f"{path}: image is missing; restore it or remove its entry")
    # Pillow's own message names the stream, not the file, when it was given bytes.
    reason = "not an image" if isinstance(error, UnidentifiedImageError) else error
    return DataError(
        f"{path}: image is truncated or unreadable ({reason}); replace it or remove its entry"
    )


def _to_rgb(image: Image.Image) -> Image.Image:
    # Pillow clips 16-bit and float pixels at 255 when it converts them, so they are scaled first.
    if image.mode.startswith("I") or image.mode == "F":
        pixels = np.asarray(image, dtype=np.float64)
        if image.mode != "F":
            top = 65535.0
        else:
            top = 1.0 if pixels.max(initial=0.0) <= 1.0 else 255.0
        scaled = (pixels / top * 255.0).round().clip(0, 255)
        image = Image.fromarray(scaled.astype(np.uint8))
    return image.convert("RGB")


def check_images(directory: str | Path, files: Iterable[str]) -> None:
    """Find missing, empty and truncated files before training starts.

    Only the end of each file is read: a JPEG or PNG that has its end marker there is taken to be
    whole; any other file is decoded to make sure.

    Raises:
        DataError: names the first file that cannot be used, and says how many there are.
    """
    root = Path(directory)
    if not root.is_dir():
        raise DataError(f"{root}: no such directory; set data.*.images to the folder of the images")
    _for_each(lambda name: _check(root / name), files)


def image_sizes(directory: str | Path, files: Sequence[str]) -> list[tuple[int, int]]:
    """(height, width) in pixels of each file; only the headers are read.

    Raises:
        DataError: names the first file without a readable header, and says how many there are.
    """
    return _for_each(lambda name: _size(Path(directory) / name), files)


def _for_each(function: Callable[[str], Result], files: Iterable[str]) -> list[Result]:
    """Call for each file, in threads; all are tried before the first error is raised."""

    def attempt(name: str) -> Result | DataError:
        try:
            return function(name)
        except DataError as error:
            return error

    with ThreadPoolExecutor(max_workers=8) as pool:
        results = list(pool.map(attempt, files))
    problems = [result for result in results if isinstance(result, DataError)]
    if problems:
        more = f" (and {len(problems) - 1} more files like it)" if len(problems) > 1 else ""
        raise DataError(f"{problems[0]}{more}")
    return results


def _check(path: Path) -> None:
    marker = END_MARKERS.get(path.suffix.lower())
    try:
        with open(path, "rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(-min(64, file.tell()), os.SEEK_CUR)
            if marker is not None and marker in file.read():
                return
    except OSError:
        raise DataError(f"{path}: image is missing; restore it or remove its entry") from None
    read_image(path)


def _size(path: Path) -> tuple[int, int]:
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except UNREADABLE as error:
        raise _unusable(path, error) from None
