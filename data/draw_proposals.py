"""Pictures of the best proposals, to see at a glance whether they are any good.

Letters: `P` proposals.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from data.images import read_image

PICTURES = 12  # of a run
BOXES = 30  # on a picture
BOLD = 5  # the best boxes have thick lines and their rank
SIDE = 800  # longer side in pixels for which lines are 1 and 3 pixels wide; they grow with it


def draw_sample(
    images: Path, files: Sequence[str], boxes_of: Callable[[str], np.ndarray], directory: Path
) -> list[Path]:
    """Draw the best boxes of a few images, evenly spaced over the list, as JPEG files.

    Args:
        images: folder of the images.
        files: relative to it.
        boxes_of: gives (P, 4) xyxy boxes in pixels of a file, best first.
        directory: gets ``NAME.jpg`` for each image drawn, subfolders kept.

    Returns:
        The pictures.

    Raises:
        DataError: an image cannot be read.
    """
    pictures = []
    for file in evenly_spaced(files, PICTURES):
        path = directory.joinpath(*_inner_parts(file)).with_name(PurePosixPath(file).name + ".jpg")
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = draw_ranked(read_image(images / file), boxes_of(file)[:BOXES])
        picture.save(path, quality=92, subsampling=0)  # else thin coloured lines are smeared
        pictures.append(path)
    return pictures


def evenly_spaced(files: Sequence[str], count: int) -> list[str]:
    """At most ``count`` of the files, from the first to the last."""
    if len(files) <= count:
        return list(files)
    return [files[i * (len(files) - 1) // (count - 1)] for i in range(count)]


def _inner_parts(file: str) -> list[str]:
    """The parts of a path that cannot lead out of a folder."""
    path = PurePosixPath(file)
    return [part for part in path.parts if part not in (path.anchor, "..")]


def rank_colour(rank: int, count: int) -> tuple[int, int, int]:
    """From red for the best over yellow and green to blue for the last of ``count``."""
    hue = 0.66 * rank / max(count - 1, 1)
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.9, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)


def draw_ranked(image: Image.Image, boxes: np.ndarray) -> Image.Image:
    """A copy of ``image`` with (P, 4) xyxy boxes, best first, of which the best lie on top."""
    picture = image.convert("RGB")
    draw = ImageDraw.Draw(picture)
    unit = max(1, round(max(picture.size) / SIDE))
    font = ImageFont.load_default(size=14 * unit)
    for rank, box in reversed(list(enumerate(boxes.tolist()))):
        # Right and bottom edges are exclusive; Pillow's are inclusive.
        left, top = (min(int(v), side - 1) for v, side in zip(box[:2], picture.size, strict=True))
        right, bottom = max(left, round(box[2]) - 1), max(top, round(box[3]) - 1)
        colour = rank_colour(rank, len(boxes))
        width = 3 * unit if rank < BOLD else unit
        draw.rectangle((left, top, right, bottom), outline=colour, width=width)
        if rank < BOLD:
            _caption(draw, (left, top), str(rank + 1), colour, font)
    return picture


def _caption(
    draw: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    text: str,
    colour: tuple[int, int, int],
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
) -> None:
    """Text on a patch of the box's colour, inside its upper left corner."""
    left, top, right, bottom = draw.textbbox((corner[0] + 4, corner[1] + 2), text, font=font)
    draw.rectangle((*corner, right + 3, bottom + 3), fill=colour)
    draw.text((corner[0] + 4, corner[1] + 2), text, fill="black", font=font)
