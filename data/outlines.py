"""Outlines of the kinds of shape in the built-in datasets: `OUTLINES` of the one with boxes
(`data/shapes.py`), `OTHER_OUTLINES` of the one that trains backbones (`data/single_shapes.py`).

An outline is a signed distance in local coordinates, in which a shape fits into the unit circle:
negative inside, nearly exact at the edge.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np


def _polygon(x: np.ndarray, y: np.ndarray, sides: int, apothem: float) -> np.ndarray:
    angles = [2 * math.pi * side / sides for side in range(sides)]
    return np.max([x * math.cos(a) + y * math.sin(a) for a in angles], axis=0) - apothem


def _star(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    # Folding the plane onto half a point leaves one edge: from the tip to the inner corner.
    wedge = math.pi / 5
    angle = np.abs((np.arctan2(y, x) + wedge) % (2 * wedge) - wedge)
    radius = np.hypot(x, y)
    inner_x, inner_y = 0.45 * math.cos(wedge), 0.45 * math.sin(wedge)
    normal_x, normal_y = inner_y, 1.0 - inner_x
    along_normal = (radius * np.cos(angle) - 1.0) * normal_x + radius * np.sin(angle) * normal_y
    return along_normal / math.hypot(normal_x, normal_y)


def _corner(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    square = np.maximum(np.abs(x), np.abs(y)) - 0.75
    return np.maximum(square, np.minimum(x, y) + 0.1)  # all but one corner of it


Outline = Callable[[np.ndarray, np.ndarray], np.ndarray]

OUTLINES: dict[str, Outline] = {
    "circle": lambda x, y: np.hypot(x, y) - 0.95,
    "triangle": lambda x, y: _polygon(x, y, sides=3, apothem=0.55),
    "star": _star,
    "ring": lambda x, y: np.abs(np.hypot(x, y) - 0.75) - 0.22,
}
OTHER_OUTLINES: dict[str, Outline] = {
    "rectangle": lambda x, y: np.maximum(np.abs(x), np.abs(y)) - 0.7,
    "hexagon": lambda x, y: _polygon(x, y, sides=6, apothem=0.8),
    "crescent": lambda x, y: np.maximum(np.hypot(x, y) - 1.0, 0.9 - np.hypot(x - 0.6, y)),
    "half disc": lambda x, y: np.maximum(np.hypot(x, y + 0.4) - 0.9, -(y + 0.4)),
    "frame": lambda x, y: np.abs(np.maximum(np.abs(x), np.abs(y)) - 0.55) - 0.16,
    "flower": lambda x, y: np.hypot(x, y) - 0.72 - 0.22 * np.cos(6 * np.arctan2(y, x)),
    "corner": _corner,
}
CLASSES, OTHER_CLASSES = tuple(OUTLINES), tuple(OTHER_OUTLINES)  # category id = position + 1
