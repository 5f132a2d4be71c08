"""Pictures of detections: names, scores and colours; sheets keep every picture whole."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from aligndet import visual
from aligndet.visual import draw_boxes, sheet
from data.drawing import class_colour


def test_classes_have_their_colour_whatever_else_is_drawn():
    image = Image.new("RGB", (60, 80), "black")
    boxes = torch.tensor([[10.0, 30, 41, 71], [10, 5, 41, 25]])
    picture = draw_boxes(image, boxes[:1], torch.tensor([1]), ["a", "b"], torch.tensor([0.5]))
    pixels = np.asarray(picture)
    assert tuple(pixels[50, 10]) == tuple(pixels[50, 40]) == class_colour(1)
    assert (pixels[45:65, 15:35] == 0).all()
    both = draw_boxes(image, boxes, torch.tensor([1, 0]), ["a", "b"])
    assert both.getpixel((10, 50)) == class_colour(1)
    assert both.getpixel((10, 20)) == class_colour(0)
    assert not np.asarray(image).any()


def test_no_boxes_leave_the_picture_as_it_is():
    image = Image.new("RGB", (20, 20), "red")
    picture = draw_boxes(image, torch.zeros(0, 4), torch.zeros(0, dtype=torch.long), [])
    assert picture.tobytes() == image.tobytes()


@pytest.fixture
def captions(monkeypatch):
    """The captions of a call of `draw_boxes`."""
    seen = []

    def note(image, boxes, captions, *rest, **options):
        seen[:] = captions
        return image

    monkeypatch.setattr(visual, "draw_captioned", note)
    return seen


def test_captions_by_hand(captions):
    names = ["dog", "猫", "größe", "line\nbreak", "", "\ud800"]
    image, boxes, labels = Image.new("RGB", (9, 9)), torch.zeros(6, 4), torch.arange(6)
    draw_boxes(image, boxes, labels, names)
    assert captions == ["dog", "class 1", "grosse", "line break", "class 4", "class 5"]
    draw_boxes(image, boxes[:2], labels[:2], names, torch.tensor([0.916, 1.0]))
    assert captions == ["dog 0.92", "class 1 1.00"]
    draw_boxes(image, boxes[:2], labels[:2], None, torch.tensor([0.916, 1.0]))
    assert captions == ["0.92", "1.00"]
    draw_boxes(image, boxes[:2], labels[:2], None)
    assert captions == ["", ""]


def test_a_sheet_holds_every_picture_whole():
    colours = ["red", "lime", "blue", "cyan"]
    sizes = [(30, 20), (10, 40), (50, 10), (25, 25)]
    pictures = [Image.new("RGB", size, c) for size, c in zip(sizes, colours, strict=True)]
    pixels = np.asarray(sheet([pictures[:2], pictures[2:]], ["left", "right"]))
    for (width, height), colour in zip(sizes, colours, strict=True):
        rgb = np.asarray(Image.new("RGB", (1, 1), colour))[0, 0]
        assert (pixels == rgb).all(axis=2).sum() == width * height
