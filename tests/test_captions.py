"""Captions: their letters grow with the picture; they hide as little as a slow search finds."""

from __future__ import annotations

import numpy as np
import pytest

from data.captions import LEAST_TEXT, LONGEST, letter, place
from data.fonts import CaptionFont

FONT = CaptionFont()


def height_of(letters):
    return sum(letters.font.getmetrics())


def test_letters_grow_with_the_picture_but_stay_readable():
    heights = [height_of(letter(["dog"], (side, side), FONT)) for side in (60, 100, 416, 900, 3328)]
    assert heights == sorted(heights)
    assert heights[0] == heights[1] == sum(FONT.at(LEAST_TEXT).getmetrics())
    assert 7 < heights[-1] / heights[2] < 8.5  # 3328 / 416 = 8


def test_letters_shrink_in_a_crowd():
    few, many = (letter(["jellyfish 0.93"] * n, (1000, 1000), FONT) for n in (3, 90))
    assert height_of(many) < height_of(few)
    assert (many.sizes > 0).all()


@pytest.mark.parametrize("width", [8, 40, 100, 4000])
@pytest.mark.parametrize("name", ["a", "a" * 300, "a long name of several words"])
def test_captions_are_shortened_and_keep_their_score(name, width):
    caption = f"{name} 0.57"
    letters = letter([caption, ""], (width, 300), FONT)
    assert letters.sizes[1].tolist() == [0, 0]
    if letters.texts[0] != caption:
        assert letters.texts[0].endswith(" 0.57")
        assert "…" in letters.texts[0]
    assert len(letters.texts[0]) <= LONGEST
    if width >= 100:
        assert letters.sizes[0, 0] <= width


def shared(a, b):
    """Area that two xyxy rectangles share, by counting pixels."""
    columns = set(range(a[0], a[2])) & set(range(b[0], b[2]))
    rows = set(range(a[1], a[3])) & set(range(b[1], b[3]))
    return len(columns) * len(rows)


def test_the_usual_place_is_above_and_at_the_edge_below():
    frames = np.array([[50, 50, 90, 90], [120, 0, 160, 40]])
    patches = place(frames, frames, np.array([[30, 10], [30, 10]]), (200, 100))
    assert patches == [(50, 40, 80, 50), (120, 40, 150, 50)]


def test_small_objects_stay_visible():
    """A small object sits where the caption of the large one would be."""
    frames = np.array([[20, 30, 180, 90], [22, 18, 34, 28]])
    first, second = place(frames, frames, np.array([[40, 12], [40, 12]]), (200, 100))
    assert shared(first, frames[1]) == shared(second, frames[1]) == shared(first, second) == 0


def test_captions_at_one_corner_lie_apart():
    frames = np.array([[40, 40, 140 - 10 * i, 140 - 10 * i] for i in range(5)])
    patches = place(frames, frames, np.array([[20, 10]] * 5), (200, 200))
    for i in range(5):
        for j in range(i):
            assert shared(patches[i], patches[j]) == 0


@pytest.mark.parametrize("seed", range(4))
def test_patches_are_in_the_picture_and_better_captions_can_be_read(seed):
    rng = np.random.default_rng(seed)
    start = rng.integers(0, 280, (80, 2))
    frames = np.concatenate([start, start + rng.integers(2, 90, (80, 2))], axis=1)
    sizes = np.stack([rng.integers(20, 50, 80), np.full(80, 10)], axis=1)
    patches = place(frames, frames, sizes, (300, 300))
    drawn = [patch for patch in patches if patch is not None]
    assert patches[0] is not None
    assert 5 < len(drawn) < 80
    for number, (x1, y1, x2, y2) in enumerate(drawn):
        assert 0 <= x1 < x2 <= 300
        assert 0 <= y1 < y2 <= 300
        covered = sum(shared(drawn[number], other) for other in drawn[:number])
        assert covered <= 0.3 * (x2 - x1) * (y2 - y1)
    assert sum((x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in drawn) <= 0.15 * 300**2 + 500


def test_a_caption_larger_than_the_picture_is_cut():
    frames = np.array([[0, 0, 5, 5]])
    assert place(frames, frames, np.array([[30, 12]]), (8, 6)) == [(0, 0, 8, 6)]
