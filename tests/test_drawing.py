"""Boxes on pictures: on their pixels, at every size, in colours that can be told apart."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from PIL import Image

from data.drawing import PALETTE, class_colour, draw_boxes, line_width, text_colour

RED, BLUE = (255, 0, 0), (0, 0, 255)


def pixels_of(size, boxes, colours, captions=None, **options):
    image = Image.new("RGB", size)
    picture = draw_boxes(
        image, np.array(boxes, dtype=float), captions or [""] * len(boxes), colours, **options
    )
    assert not np.asarray(image).any()  # the original is untouched
    return np.asarray(picture)


def test_lines_lie_on_the_pixels_of_the_box():
    pixels = pixels_of((500, 400), [[10.0, 20, 50, 40]], [RED])
    red = np.zeros((400, 500), dtype=bool)
    red[20:40, 10:50] = True  # pixels 10..49 and 20..39
    red[22:38, 12:48] = False
    assert (pixels[red] == RED).all()
    assert not pixels[~red].any()


def test_lines_of_a_small_box_are_around_it():
    pixels = pixels_of((500, 400), [[10.0, 20, 16, 25]], [RED])
    assert not pixels[20:25, 10:16].any()
    assert (pixels[18:20, 8:18] == RED).all()
    assert (pixels[25:27, 8:18] == RED).all()


def test_the_first_box_is_on_top_and_captions_above_all_lines():
    boxes = [[100.0, 100, 200, 200], [100, 100, 200, 200], [90, 60, 260, 104]]
    pixels = pixels_of((300, 300), boxes, [RED, BLUE, BLUE], ["dog", "", ""])
    assert tuple(pixels[200 - 1, 150]) == RED
    assert tuple(pixels[150, 100]) == RED
    caption = (pixels == RED).all(axis=2) | (pixels < 10).all(axis=2)
    assert caption[90:99, 101:115].all() or caption[202:210, 101:115].all()


@pytest.mark.parametrize(("side", "width"), [(10, 1), (100, 1), (416, 2), (800, 3), (3328, 14)])
def test_lines_grow_with_the_picture(side, width):
    assert line_width((side, side)) == width
    assert line_width((4000, 10)) == 1  # a strip


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (4000, 10), (10, 2000), (900, 700)])
def test_any_size_and_any_box(size):
    width, height = size
    boxes = [
        [0, 0, width, height],
        [width - 0.4, height - 0.4, width, height],
        [-50, -50, width + 50, height + 50],
        [-1e30, -1e30, -1e29, 1e30],
        [width + 5, 0, width + 9, 4],
        [3, 3, 3, 3],
    ]
    colours = [class_colour(label) for label in range(6)]
    pixels = pixels_of(size, boxes, colours, ["a caption 0.50"] * 6)
    assert pixels.shape == (height, width, 3)


def test_a_picture_of_any_mode():
    for mode in ("L", "P", "RGBA", "CMYK", "1"):
        picture = draw_boxes(Image.new(mode, (30, 30)), np.array([[5, 5, 25, 25.0]]), ["a"], [RED])
        assert picture.mode == "RGB"


def test_colours_can_be_told_apart():
    colours = [class_colour(label) for label in range(60)]
    assert len(set(colours)) == 60
    assert colours[: len(PALETTE)] == list(PALETTE)
    for one, other in itertools.combinations(PALETTE, 2):
        assert np.abs(np.subtract(one, other)).sum() >= 60


def test_text_has_the_contrast_that_accessibility_asks_for():
    """4.5 : 1 is what the guidelines ask of text; ratios by their formula, in another way."""

    def luminance(colour):
        c = np.array(colour) / 255
        return np.where(c <= 0.03928, c / 12.92, ((c + 0.055) / 1.055) ** 2.4) @ [
            *(0.2126, 0.7152, 0.0722)
        ]

    assert text_colour((255, 255, 255)) == text_colour((255, 255, 0)) == "black"
    assert text_colour((0, 0, 0)) == text_colour((0, 0, 255)) == "white"
    assert text_colour((118, 118, 118)) == "black"  # 4.62 : 1 against 4.54 : 1
    for colour in itertools.product(range(0, 256, 51), repeat=3):
        text = luminance((0, 0, 0) if text_colour(colour) == "black" else (255, 255, 255))
        dark, light = sorted([text, luminance(colour)])
        assert (light + 0.05) / (dark + 0.05) >= 4.5
