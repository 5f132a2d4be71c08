"""Pictures of detections."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

MARGIN = 4  # pixels between the pictures of a sheet
TITLE_HEIGHT = 18


def class_colour(label: int) -> tuple[int, int, int]:
    """A colour for class 0, 1, ...: neighbouring classes have very different hues."""
    red, green, blue = colorsys.hsv_to_rgb(label * 0.618034 % 1.0, 0.85, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)


def draw_boxes(
    image: Image.Image,
    boxes: Tensor,
    labels: Tensor,
    names: Sequence[str],
    scores: Tensor | None = None,
) -> Image.Image:
    """A copy of `image` with boxes (D, 4) xyxy in its pixels, captioned by class and score."""
    picture = image.convert("RGB")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(size=10)
    for index, (box, label) in enumerate(zip(boxes.tolist(), labels.tolist(), strict=True)):
        colour = class_colour(label)
        caption = names[label] + (f" {scores[index]:.2f}" if scores is not None else "")
        left, top = box[0], max(0.0, box[1] - 12)
        draw.rectangle(box, outline=colour, width=2)
        draw.rectangle(draw.textbbox((left + 1, top), caption, font=font), fill=colour)
        draw.text((left + 1, top), caption, fill="black", font=font)
    return picture


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
