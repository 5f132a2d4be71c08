"""Pictures of the best proposals, to see at a glance whether they are any good.

Legend: P proposals.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from data.images import AS_STORED, ImageReading, read_image

PICTURES = 12  # per run
BOXES = 30  # per picture
BOLD = 5  # the best boxes have thick lines and their rank
LEAST_SIDE_FOR_TEXT = 100  # pixels; ranks would hide what is in a smaller image
SIDE = 800  # longer side in pixels for which lines are 1 and 3 pixels wide; they grow with it


def draw_sample(
    images: Path,
    files: Sequence[str],
    boxes_of: Callable[[str], np.ndarray],
    directory: Path,
    reading: ImageReading = AS_STORED,
) -> list[Path]:
    """Draw the best boxes of a few images, evenly spaced over the list, as JPEG files.

    Args:
        images: folder of the images.
        files: relative to it.
        boxes_of: gives (P, 4) xyxy boxes in pixels for a file, best first.
        directory: gets `NAME.jpg` for each image drawn, subfolders kept.
        reading: how the images were read when the boxes were found.

    Returns:
        Paths of the pictures.

    Raises:
        DataError: an image cannot be read.
    """
    pictures = []
    for file in evenly_spaced(files, PICTURES):
        path = directory.joinpath(*_inner_parts(file)).with_name(PurePosixPath(file).name + ".jpg")
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = draw_ranked(read_image(images / file, reading), boxes_of(file)[:BOXES])
        picture.save(path, quality=92, subsampling=0)  # else thin coloured lines are smeared
        pictures.append(path)
    return pictures


def evenly_spaced(files: Sequence[str], count: int) -> list[str]:
    """At most `count` of the files, from the first to the last."""
    if len(files) <= count:
        return list(files)
    return [files[i * (len(files) - 1) // (count - 1)] for i in range(count)]


def _inner_parts(file: str) -> list[str]:
    """The parts of a path that cannot lead out of a folder."""
    path = PurePosixPath(file)
    return [part for part in path.parts if part not in (path.anchor, "..")]


def rank_colour(rank: int) -> tuple[int, int, int]:
    """From red through yellow and green to blue for the best `BOLD`; others ever darker violet."""
    if rank < BOLD:
        red, green, blue = colorsys.hsv_to_rgb(0.6 * rank / (BOLD - 1), 0.95, 1.0)
    else:
        fading = 1.0 - 0.35 * min(1.0, (rank - BOLD) / (BOXES - BOLD))
        red, green, blue = colorsys.hsv_to_rgb(0.8, 0.55, fading)
    return round(255 * red), round(255 * green), round(255 * blue)


def draw_ranked(image: Image.Image, boxes: np.ndarray) -> Image.Image:
    """A copy of `image` with (P, 4) xyxy boxes, best first; the best are on top."""
    picture = image.convert("RGB")
    draw = ImageDraw.Draw(picture)
    unit = max(1, round(max(picture.size) / SIDE))
    corners = [_pixel_corners(box, picture.size) for box in boxes.tolist()]
    for rank, box in reversed(list(enumerate(corners))):
        draw.rectangle(box, outline=rank_colour(rank), width=3 * unit if rank < BOLD else unit)
    if min(picture.size) < LEAST_SIDE_FOR_TEXT:
        return picture
    font = ImageFont.load_default(size=14 * unit)
    patches: list[tuple[float, float, float, float]] = []
    for rank, (left, top, _, _) in enumerate(corners[:BOLD]):
        patches.append(_free_patch(left, top, 15 * unit, patches))
        draw.rectangle(patches[-1], fill=rank_colour(rank))
        draw.text(_centre(patches[-1]), str(rank + 1), fill="black", font=font, anchor="mm")
    return picture


def _pixel_corners(box: Sequence[float], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """First and last pixels: a box's right and bottom edges are exclusive, Pillow's inclusive."""
    left, top = (min(int(v), side - 1) for v, side in zip(box[:2], size, strict=True))
    return left, top, max(left, round(box[2]) - 1), max(top, round(box[3]) - 1)


def _free_patch(
    left: float, top: float, side: float, taken: Sequence[tuple[float, float, float, float]]
) -> tuple[float, float, float, float]:
    """A square for a rank at a box's corner, to the right of those already there."""
    overlaps = [t for t in taken if abs(t[0] - left) <= side and abs(t[1] - top) <= side]
    if overlaps:
        return _free_patch(max(t[2] for t in overlaps) + 1, top, side, taken)
    return left, top, left + side, top + side


def _centre(box: tuple[float, float, float, float]) -> tuple[float, float]:
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
