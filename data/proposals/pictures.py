"""Pictures of the best proposals, to see at a glance whether they are any good.

Legend: P proposals.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from data.drawing import Colour, draw_boxes, picture_path, save_picture
from data.fonts import CaptionFont
from data.images import AS_STORED, ImageReading, read_image
from data.masks import decode

PICTURES = 12  # per run
BOXES = 30  # per picture
BOLD = 5  # the best boxes have thick lines and their rank
BOLD_WEIGHT, THIN_WEIGHT = 1.2, 0.4  # of their lines and the others'
TINT = 0.4  # share of the colour inside the mask of one of the best boxes
LEAST_SIDE_FOR_TEXT = 100  # pixels; ranks would hide what is in a smaller image


def draw_sample(
    images: Path,
    files: Sequence[str],
    boxes_of: Callable[[str], np.ndarray],
    directory: Path,
    reading: ImageReading = AS_STORED,
    font: CaptionFont | None = None,
    masks_of: Callable[[str], Sequence[bytes] | None] | None = None,
) -> list[Path]:
    """Draw the best boxes of a few images, evenly spaced over the list, as JPEG files.

    Args:
        images: folder of the images.
        files: relative to it.
        boxes_of: gives (P, 4) xyxy boxes in pixels for a file, best first.
        directory: gets `NAME.jpg` for each image drawn, subfolders kept.
        reading: how the images were read when the boxes were found.
        font: of the ranks; Pillow's own without one.
        masks_of: gives the boxes' masks, as in `data.masks`; those of the best are drawn.

    Returns:
        Paths of the pictures.

    Raises:
        DataError: an image cannot be read, or a picture cannot be written.
    """
    pictures = []
    font = font or CaptionFont()
    for file in tqdm(evenly_spaced(files, PICTURES), desc="pictures", delay=2, leave=False):
        path = picture_path(directory, file, "jpg")
        image = read_image(images / file, reading)
        masks = None if masks_of is None else masks_of(file)
        if masks:
            image = tint(image, decode(masks[:BOLD], image.height, image.width))
        save_picture(draw_ranked(image, boxes_of(file)[:BOXES], font), path)
        pictures.append(path)
    return pictures


def evenly_spaced(files: Sequence[str], count: int) -> list[str]:
    """At most `count` of the files, from the first to the last."""
    if len(files) <= count:
        return list(files)
    return [files[i * (len(files) - 1) // (count - 1)] for i in range(count)]


def rank_colour(rank: int) -> Colour:
    """From red through yellow and green to blue for the best `BOLD`; others ever darker violet."""
    if rank < BOLD:
        red, green, blue = colorsys.hsv_to_rgb(0.6 * rank / (BOLD - 1), 0.95, 1.0)
    else:
        fading = 1.0 - 0.35 * min(1.0, (rank - BOLD) / (BOXES - BOLD))
        red, green, blue = colorsys.hsv_to_rgb(0.8, 0.55, fading)
    return round(255 * red), round(255 * green), round(255 * blue)


def tint(image: Image.Image, masks: np.ndarray) -> Image.Image:
    """A copy of `image` with the masks (M, H, W) of the best boxes, best first and on top."""
    pixels = np.array(image.convert("RGB"))
    for rank in reversed(range(len(masks))):
        inside = masks[rank] > 0
        mixed = (1 - TINT) * pixels[inside] + TINT * np.array(rank_colour(rank))
        pixels[inside] = mixed.round().astype(np.uint8)
    return Image.fromarray(pixels)


def draw_ranked(
    image: Image.Image, boxes: np.ndarray, font: CaptionFont | None = None
) -> Image.Image:
    """A copy of `image` with (P, 4) xyxy boxes, best first; the best are on top."""
    ranks = range(len(boxes))
    has_text = min(image.size) >= LEAST_SIDE_FOR_TEXT
    captions = [str(rank + 1) if has_text and rank < BOLD else "" for rank in ranks]
    weights = [BOLD_WEIGHT if rank < BOLD else THIN_WEIGHT for rank in ranks]
    return draw_boxes(image, boxes, captions, list(map(rank_colour, ranks)), weights, font)
