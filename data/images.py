"""Finding and reading image files, with errors that name the file."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from data.errors import DataError

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})
END_MARKERS = {".jpg": b"\xff\xd9", ".jpeg": b"\xff\xd9", ".png": b"IEND"}


def list_images(directory: str | Path) -> list[str]:
    """Image files below ``directory``: sorted paths relative to it, with ``/`` on every system.

    Raises:
        DataError: the directory does not exist or holds no image.
    """
    root = Path(directory)
    if not root.is_dir():
        raise DataError(f"{root}: no such directory; give the folder that holds the images")
    found = sorted(_walk(root))
    if not found:
        kinds = " ".join(sorted(EXTENSIONS))
        raise DataError(f"{root}: holds no image; expected files ending in one of {kinds}")
    return found


def _walk(root: Path) -> Iterator[str]:
    """Yield the relative path of every image below ``root``."""
    pending = [root]
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                if entry.is_dir():
                    pending.append(Path(entry.path))
                elif os.path.splitext(entry.name)[1].lower() in EXTENSIONS:
                    yield Path(entry.path).relative_to(root).as_posix()


def read_image(path: str | Path) -> Image.Image:
    """Decode an image file as 8-bit RGB, whatever it was (grey, palette, RGBA, CMYK, 16 bits).

    The EXIF orientation is not applied: COCO-style boxes refer to the stored pixels.

    Raises:
        DataError: the file is missing, truncated or not an image.
    """
    try:
        with Image.open(path) as image:
            image.load()
            return _to_rgb(image)
    except FileNotFoundError:
        raise DataError(f"{path}: image is missing; restore it or remove its entry") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(
            f"{path}: image is truncated or unreadable ({error}); replace it or remove its entry"
        ) from None


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

    Only the end of each file is read: a JPEG or PNG that has its end marker there is taken as
    whole, any other is decoded to make sure.

    Raises:
        DataError: naming the first file that cannot be used, and how many there are.
    """
    root = Path(directory)
    if not root.is_dir():
        raise DataError(f"{root}: no such directory; set data.*.images to the folder of the images")
    with ThreadPoolExecutor(max_workers=8) as pool:
        problems = [p for p in pool.map(lambda name: _problem(root / name), files) if p]
    if problems:
        more = f" (and {len(problems) - 1} more files like it)" if len(problems) > 1 else ""
        raise DataError(problems[0] + more)


def _problem(path: Path) -> str | None:
    marker = END_MARKERS.get(path.suffix.lower())
    try:
        with open(path, "rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(-min(64, file.tell()), os.SEEK_CUR)
            if marker is not None and marker in file.read():
                return None
    except OSError:
        return f"{path}: image is missing; restore it or remove its entry"
    try:
        read_image(path)
    except DataError as error:
        return str(error)
    return None
