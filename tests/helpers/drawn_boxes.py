"""Draw pictures with rectangles of known colours, and find the rectangles again in a tensor."""

from __future__ import annotations

import json

import numpy as np
import torch
from PIL import Image

GROUND = (120, 120, 120)
# Far from each other and from every mixture of one of them with the ground.
COLOURS = [
    (225, 25, 25),
    (25, 225, 25),
    (25, 25, 225),
    (225, 225, 25),
    (225, 25, 225),
    (25, 225, 225),
]


def draw(width, height, boxes, colours=COLOURS, ground=GROUND):
    """A picture with one rectangle per box, xyxy in whole pixels."""
    pixels = np.full((height, width, 3), ground, dtype=np.uint8)
    for (x1, y1, x2, y2), colour in zip(boxes, colours, strict=False):
        pixels[y1:y2, x1:x2] = colour
    return Image.fromarray(pixels)


def extent(mask):
    """The box (4,) around the true pixels of a mask (H, W)."""
    assert mask.any(), "the rectangle is not in the picture"
    y, x = torch.nonzero(mask, as_tuple=True)
    return torch.tensor([x.min(), y.min(), x.max() + 1, y.max() + 1], dtype=torch.float32)


def find(pixels, colour, ground=GROUND):
    """The box (4,) of the rectangle of one colour in (3, H, W) values in 0..255."""
    colour, ground = (torch.tensor(c, dtype=torch.float32).view(3, 1, 1) for c in (colour, ground))
    distance = (pixels.float() - colour).norm(dim=0)  # (H, W)
    return extent(distance < 0.5 * (colour - ground).norm())


def find_marker(pixels):
    """The box (4,) of the one rectangle of any colour, unlike the top left pixel."""
    distance = (pixels.float() - pixels[:, :1, :1].float()).norm(dim=0)  # (H, W)
    return extent(distance > 0.5 * distance.max())


def save_coco(folder, pictures):
    """Save PNG files and a COCO JSON of (width, height, boxes xyxy); all boxes are category 1."""
    content = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "object"}]}
    for number, (width, height, boxes) in enumerate(pictures, start=1):
        draw(width, height, boxes).save(folder / f"{number}.png")
        content["images"].append(
            {"id": number, "file_name": f"{number}.png", "width": width, "height": height}
        )
        for x1, y1, x2, y2 in boxes:
            content["annotations"].append(
                {
                    "id": len(content["annotations"]) + 1,
                    "image_id": number,
                    "category_id": 1,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                }
            )
    path = folder / "boxes.json"
    path.write_text(json.dumps(content))
    return path
