"""Pictures of a detector's errors: detections in the colour of their kind, and what was missed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from aligndet.detection_errors import Errors, Judged
from aligndet.image_inputs import as_image
from aligndet.report_pictures import SHOWN, Validation, corners, scaled
from aligndet.visual import sheet
from data.drawing import Colour, draw_boxes
from data.fonts import CaptionFont

COLUMNS, SIDE = 4, 400  # of the sheet; of a picture's longer side, in pixels
# As different to those who see no red or no green as to others (Okabe and Ito).
COLOURS: dict[str, Colour] = {
    "right": (255, 255, 255),
    "class": (230, 159, 0),
    "location": (86, 180, 233),
    "both": (240, 228, 66),
    "duplicate": (0, 158, 115),
    "background": (213, 94, 0),
    "missed": (204, 121, 167),
}


def worst(errors: Errors, count: int) -> list[Any]:
    """The ids of the images with the most to correct: what is shown and wrong, and objects without
    a detection that is shown and right."""
    wrong = {image: _to_correct(judged) for image, judged in errors.images.items()}
    ordered = sorted((image for image in wrong if wrong[image]), key=lambda image: -wrong[image])
    return ordered[:count]


def error_sheet(data: Validation, errors: Errors, images: Sequence[Any]) -> Image.Image | None:
    """A sheet of some images, or None if there are none of which the file is there.

    Args:
        data: the images that the detector was evaluated on.
        images: their ids.
    """
    paths = [(image, data.folder / data.files[image]) for image in images]
    font = CaptionFont()
    pictures = [
        error_picture(as_image(path, data.reading), errors.images[image], data.names, font)
        for image, path in paths
        if path.is_file()
    ]
    if not pictures:
        return None
    blank = Image.new("RGB", (1, 1), "white")
    pictures += [blank] * (-len(pictures) % COLUMNS if len(pictures) > COLUMNS else 0)
    columns = min(COLUMNS, len(pictures))
    rows = [pictures[start : start + columns] for start in range(0, len(pictures), columns)]
    return sheet(rows, ["the most to correct first; white: right", *[""] * (columns - 1)])


def error_picture(
    image: Image.Image, judged: Sequence[Judged], names: Mapping[Any, str], font: CaptionFont
) -> Image.Image:
    """An image with what was found in it, the surest on top, and what was missed.

    Args:
        names: of the classes by category id.
    """
    image, scale = scaled(image, SIDE)
    shown = [one for one in judged if _shown(one)]
    boxes = corners([one.entry for one in shown]) * scale
    return draw_boxes(
        image,
        boxes.numpy(),
        [_caption(one, names, font) for one in shown],
        [COLOURS[one.kind] for one in shown],
        font=font,
    )


def _caption(one: Judged, names: Mapping[Any, str], font: CaptionFont) -> str:
    """What was found, and what is wrong with it."""

    def name(entry: Mapping[str, Any]) -> str:
        category = entry["category_id"]
        return font.readable(names[category], f"class {category}")

    if one.kind == "right":
        return ""
    if one.kind == "class":
        return f"{name(one.truth)} taken for {name(one.entry)}"
    return f"{one.kind}: {name(one.entry)}"


def _shown(one: Judged) -> bool:
    return one.kind == "missed" or one.entry["score"] >= SHOWN


def _to_correct(judged: Sequence[Judged]) -> int:
    objects = {id(one.truth) for one in judged if one.truth is not None}
    shown = [one for one in judged if _shown(one)]
    right = sum(one.kind == "right" for one in shown)
    wrong = sum(one.kind not in ("right", "missed") for one in shown)
    return wrong + len(objects) - right
