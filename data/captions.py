"""Captions of boxes: letters that suit the picture, and places where they hide least.

Legend: D boxes, P places for a caption, B other rectangles.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import ImageFont

from data.fonts import CaptionFont

TEXT = 1 / 46  # height of a line of text, as a share of the picture's side (the root of its area)
LEAST_TEXT = 9  # pixels; smaller letters cannot be read
CROWDED = 0.1  # share of the picture that captions may cover before their letters shrink
SMALLEST = 0.6  # of the usual size, then
LONGEST = 30  # characters
TAIL = 5  # of them are the last: a score
HIDDEN_CAPTION = 4.0  # cost of lying wholly on better captions; that of a hidden object is 1
# A caption is left out if more than this share of it lies on better ones, if it hides more objects,
# or if those before it cover more of the picture.
MOST_ON_CAPTIONS, MOST_HIDDEN, MOST_COVERED = 0.3, 0.6, 0.15

Patch = tuple[int, int, int, int]  # xyxy, edges exclusive


@dataclass(frozen=True)
class Lettering:
    """Captions as they are drawn on one picture."""

    font: ImageFont.FreeTypeFont
    texts: list[str]  # shortened
    sizes: np.ndarray  # (D, 2) width and height in pixels with margins; zeros without a text
    start: tuple[int, int]  # of the text's base line in its patch, x and y


def letter(captions: Sequence[str], size: tuple[int, int], font: CaptionFont) -> Lettering:
    """Choose the size of letters for a picture of (width, height), and shorten long captions."""
    area = size[0] * size[1]
    height = max(LEAST_TEXT, round(TEXT * math.sqrt(area)))
    lettering = _letter(captions, height, size[0], font)
    share = lettering.sizes.prod(axis=1).sum() / area
    if share <= CROWDED:
        return lettering
    shrunk = max(LEAST_TEXT, round(height * max(SMALLEST, math.sqrt(CROWDED / share))))
    return _letter(captions, shrunk, size[0], font)


def _letter(captions: Sequence[str], height: int, width: int, font: CaptionFont) -> Lettering:
    letters = font.at(height)
    margin = max(1, height // 6)
    ascent, descent = letters.getmetrics()
    dots = font.readable("…", "..")
    texts, sizes = [], []
    for caption in captions:
        text, head = caption, min(LONGEST, len(caption)) - TAIL
        while len(text) > LONGEST or letters.getlength(text) + 2 * margin > width:
            head -= 1
            if head < 1:
                break
            text = caption[:head] + dots + caption[-TAIL:]
        texts.append(text)
        wide = math.ceil(letters.getlength(text)) + 2 * margin
        sizes.append((wide, ascent + descent + margin) if text else (0, 0))
    start = (margin, ascent + margin // 2)
    return Lettering(letters, texts, np.array(sizes, dtype=int).reshape(-1, 2), start)


def place(
    frames: np.ndarray, objects: np.ndarray, sizes: np.ndarray, picture: tuple[int, int]
) -> list[Patch | None]:
    """Where to put captions, the best box's first: above, below, in or beside its frame.

    Each takes the place where it hides the least of earlier captions, then of objects: a small
    object counts as much as a large one.

    Args:
        frames: (D, 4) xyxy, the lines around the boxes included.
        objects: (D, 4) xyxy.
        sizes: (D, 2) width and height of the captions.
        picture: its width and height.

    Returns:
        For each box a patch inside the picture; None if there is no caption, or if it would hide
        too much. The first caption always has a place.
    """
    taken = np.zeros((0, 4))
    patches: list[Patch | None] = []
    for frame, size in zip(frames, sizes, strict=True):
        places = _places(frame, size, picture)
        on_captions = _overlap(places, taken).sum(axis=1) / max(1, size.prod())
        hidden = (_overlap(places, objects) / np.maximum(1, _area(objects))).sum(axis=1)
        cost = HIDDEN_CAPTION * on_captions + hidden + 0.01 * np.arange(len(places))
        best = int(cost.argmin())
        too_much = len(taken) > 0 and (
            on_captions[best] > MOST_ON_CAPTIONS
            or hidden[best] > MOST_HIDDEN
            or _area(taken).sum() > MOST_COVERED * math.prod(picture)
        )
        if too_much or not size.all():
            patches.append(None)
            continue
        taken = np.concatenate([taken, places[best : best + 1]])
        left, top, right, bottom = map(int, places[best])
        patches.append((left, top, right, bottom))
    return patches


def _places(frame: np.ndarray, size: np.ndarray, picture: tuple[int, int]) -> np.ndarray:
    """(P, 4) xyxy, the preferred places first; all are moved into the picture."""
    x1, y1, x2, y2 = frame
    w, h = size
    corners = np.array([
        *((x1, y1 - h), (x2 - w, y1 - h)),  # above
        *((x1, y2), (x2 - w, y2)),  # below
        *((x1, y1), (x2 - w, y1), (x1, y2 - h), (x2 - w, y2 - h)),  # in a corner
        *((x2, y1), (x1 - w, y1), (x2, y2 - h), (x1 - w, y2 - h)),  # beside
    ])  # fmt: skip
    most = np.maximum(0, np.array(picture) - size)
    corners = corners.clip(0, most)
    return np.concatenate([corners, np.minimum(corners + size, picture)], axis=1)


def _area(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)


def _overlap(places: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """(P, B) pixels that a place and a rectangle share."""
    start = np.maximum(places[:, None, :2], boxes[None, :, :2])
    end = np.minimum(places[:, None, 2:], boxes[None, :, 2:])
    return (end - start).clip(0).prod(axis=2)
