"""A small photograph-like scene whose objects are known."""

from __future__ import annotations

import numpy as np


def draw(seed: int, height: int = 60, width: int = 80) -> np.ndarray:
    """A uint8 scene with two rectangles, at (10, 8)-(40, 40) and (50, 20)-(74, 52)."""
    image = np.full((height, width, 3), 100.0)
    image[8:40, 10:40] = (230, 50, 40)
    image[20:52, 50:74] = (40, 60, 220)
    image += np.random.default_rng(seed).normal(0, 4, image.shape)
    return image.clip(0, 255).astype(np.uint8)
