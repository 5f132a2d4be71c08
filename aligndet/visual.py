"""Pictures of detections, and sheets of pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from data.drawing import class_colour
from data.drawing import draw_boxes as draw_captioned
from data.fonts import CaptionFont
from data.mask_drawing import draw_masks

MARGIN = 4  # pixels between the pictures of a sheet
TITLE_HEIGHT = 18


def draw_boxes(
    image: Image.Image,
    boxes: Tensor,
    labels: Tensor,
    names: Sequence[str] | None,
    scores: Tensor | None = None,
    font: CaptionFont | None = None,
    masks: Sequence[Mapping[str, Any]] | None = None,
) -> Image.Image:
    """A copy of `image` with boxes captioned by class and score, in the colours of their classes.

    Args:
        image: of any mode.
        boxes: (D, 4) xyxy in its pixels; the first are on top.
        labels: (D,) 0..K-1.
        names: of the K classes; a class whose name cannot be shown is `class LABEL`. None: boxes
            are captioned by score alone.
        scores: (D,), if there are any.
        font: Pillow's own without one; see `CaptionFont.notice`.
        masks: of the D objects, if there are any, see `draw_masks`.
    """
    font = font or CaptionFont()
    classes = labels.tolist()
    captions = [""] * len(classes)
    if names is not None:
        shown = {label: font.readable(names[label], f"class {label}") for label in set(classes)}
        captions = [shown[label] for label in classes]
    if scores is not None:
        pairs = zip(captions, scores.tolist(), strict=True)
        captions = [f"{caption} {score:.2f}".strip() for caption, score in pairs]
    colours = [class_colour(label) for label in classes]
    if masks is not None:
        image = draw_masks(image, masks, colours)
    return draw_captioned(image, boxes.cpu().numpy(), captions, colours, font=font)


def sheet(rows: Sequence[Sequence[Image.Image]], titles: Sequence[str]) -> Image.Image:
    """Pictures in rows, one column per title."""
    widths = [max(row[c].width for row in rows) + MARGIN for c in range(len(titles))]
    heights = [max(picture.height for picture in row) + MARGIN for row in rows]
    canvas = Image.new("RGB", (sum(widths), TITLE_HEIGHT + sum(heights)), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=12)
    for column, title in enumerate(titles):
        draw.text((sum(widths[:column]) + 2, 2), title, fill="black", font=font)
        top = TITLE_HEIGHT
        for row, height in zip(rows, heights, strict=True):
            canvas.paste(row[column], (sum(widths[:column]), top))
            top += height
    return canvas
