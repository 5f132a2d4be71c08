"""Masks on pictures: on their pixels, with a line at the edge, the best on top."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask

from aligndet.visual import draw_boxes
from data.drawing import class_colour
from data.mask_drawing import draw_masks

RED, BLUE = (255, 0, 0), (0, 0, 255)
GREY = 100  # of the pictures
PALE_RED = (162, 60, 60)  # 0.6 * 100 + 0.4 * 255, and 0.6 * 100
RED_ON_BLUE = (138, 36, 97)  # 0.6 * (60, 60, 162) + 0.4 * (255, 0, 0)


def rectangles(size, *boxes):
    """Masks (H, W) of boxes, first and last pixels outside: left, top, right, bottom."""
    masks = []
    for left, top, right, bottom in boxes:
        masks.append(np.zeros(size[::-1], np.uint8))
        masks[-1][top:bottom, left:right] = 1
    return masks


def encoded(masks):
    return [coco_mask.encode(np.asfortranarray(mask)) for mask in masks]


def pixels_of(size, masks, colours):
    image = Image.new("RGB", size, (GREY,) * 3)
    pixels = np.asarray(draw_masks(image, encoded(masks), colours))
    assert (np.asarray(image) == GREY).all()  # the original is untouched
    return pixels


def test_a_mask_is_pale_and_has_a_line_inside_its_edge():
    """Lines on 500 x 400 pixels are 2 wide."""
    pixels = pixels_of((500, 400), rectangles((500, 400), (10, 20, 50, 60)), [RED])
    assert (pixels[22:58, 12:48] == PALE_RED).all()
    edge = np.zeros((400, 500), bool)
    edge[20:60, 10:50] = True
    outside = ~edge
    edge[22:58, 12:48] = False
    assert (pixels[edge] == RED).all()
    assert (pixels[outside] == GREY).all()


def test_holes_and_parts_have_lines_too():
    (mask,) = rectangles((500, 400), (10, 20, 90, 100))
    mask[50:60, 40:50] = 0  # a hole
    mask[20:100, 200:240] = 1  # another part
    pixels = pixels_of((500, 400), [mask], [RED])
    assert (pixels[50:60, 40:50] == GREY).all()
    assert (pixels[48:50, 40:50] == RED).all()
    assert (pixels[30:90, 120:180] == GREY).all()
    assert (pixels[30:90, 202:238] == PALE_RED).all()


def test_where_the_picture_ends_there_is_no_line():
    pixels = pixels_of((500, 400), rectangles((500, 400), (0, 0, 500, 60)), [RED])
    assert (pixels[:58] == PALE_RED).all()
    assert (pixels[58:60] == RED).all()
    assert (pixels[60:] == GREY).all()


def test_small_objects_are_not_covered_by_their_line():
    pixels = pixels_of((500, 400), rectangles((500, 400), (10, 20, 14, 23)), [RED])
    assert (pixels[20:23, 10:14] == PALE_RED).all()


def test_the_first_mask_is_on_top():
    masks = rectangles((500, 400), (10, 20, 90, 100), (50, 60, 150, 160))
    pixels = pixels_of((500, 400), masks, [RED, BLUE])
    assert (pixels[70:90, 60:80] == RED_ON_BLUE).all()
    assert (pixels[70, 88:90] == RED).all()
    assert tuple(pixels[70, 50]) == (102, 0, 153)  # on the line of the other: 0.6 of its blue


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (300, 1), (2, 500)])
def test_pictures_of_any_size(size):
    whole, none = rectangles(size, (0, 0, *size), (0, 0, 0, 0))
    assert (pixels_of(size, [whole], [RED]) == PALE_RED).all()
    assert (pixels_of(size, [none], [RED]) == GREY).all()
    assert (pixels_of(size, [], []) == GREY).all()


def test_pictures_of_any_mode():
    (mask,) = encoded(rectangles((30, 20), (5, 5, 9, 9)))
    for mode in ("L", "P", "RGBA", "CMYK", "1"):
        assert draw_masks(Image.new(mode, (30, 20)), [mask], [RED]).mode == "RGB"


def test_boxes_and_captions_are_above_masks():
    """And without masks, pictures are as they were."""
    image = Image.new("RGB", (500, 400), (GREY,) * 3)
    boxes, labels = torch.tensor([[10.0, 20, 50, 60]]), torch.tensor([3])
    masks = encoded(rectangles((500, 400), (0, 0, 200, 200)))
    plain = np.asarray(draw_boxes(image, boxes, labels, list("abcd")))
    both = np.asarray(draw_boxes(image, boxes, labels, list("abcd"), masks=masks))
    lines = (plain != GREY).any(axis=2)
    assert lines.sum() > 300
    assert (both[lines] == plain[lines]).all()
    pale = [round(0.6 * GREY + 0.4 * value) for value in class_colour(3)]
    assert (both[100:198, 100:198] == pale).all()
    assert (both[:, 200:] == GREY).all()
