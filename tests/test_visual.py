"""Pictures: drawn boxes are where they should be, sheets keep every picture whole."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from aligndet.visual import class_colour, draw_boxes, sheet


def test_outlines_are_on_the_box_and_the_original_is_untouched():
    image = Image.new("RGB", (60, 80), "black")
    boxes = torch.tensor([[10.0, 30.0, 40.0, 70.0]])
    picture = draw_boxes(image, boxes, torch.tensor([1]), ["a", "b"], torch.tensor([0.5]))
    pixels = np.asarray(picture)
    colour = np.array(class_colour(1))
    for x, y in ((10, 50), (40, 50), (25, 30), (25, 70)):
        assert (pixels[y, x] == colour).all()
    assert (pixels[50, 25] == 0).all()
    assert not np.asarray(image).any()


def test_no_boxes_leave_the_picture_as_it_is():
    image = Image.new("RGB", (20, 20), "red")
    picture = draw_boxes(image, torch.zeros(0, 4), torch.zeros(0, dtype=torch.long), [])
    assert picture.tobytes() == image.tobytes()


def test_colours_of_neighbouring_classes_differ():
    colours = [class_colour(label) for label in range(20)]
    assert len(set(colours)) == 20
    assert all(
        np.abs(np.subtract(a, b)).max() > 60 for a, b in zip(colours, colours[1:], strict=False)
    )


def test_a_sheet_holds_every_picture_whole():
    colours = ["red", "lime", "blue", "cyan"]
    sizes = [(30, 20), (10, 40), (50, 10), (25, 25)]
    pictures = [Image.new("RGB", size, c) for size, c in zip(sizes, colours, strict=True)]
    pixels = np.asarray(sheet([pictures[:2], pictures[2:]], ["left", "right"]))
    for (width, height), colour in zip(sizes, colours, strict=True):
        rgb = np.asarray(Image.new("RGB", (1, 1), colour))[0, 0]
        assert (pixels == rgb).all(axis=2).sum() == width * height
