"""Large-scale jitter: an image at a random scale, cut to a square where it is larger (Ghiasi et
al., "Simple copy-paste is a strong data augmentation", CVPR 2021, section 3).

Legend: M boxes.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from data.masks import resized
from data.transforms import Augment, View, horizontal_flip, pil_to_tensor

LEAST_SIDE = 1.0  # pixels; a box of which less is left, in width or height, leaves


class Window(NamedTuple):
    """The size of an image as it is scaled, and the part of it that is seen, in pixels."""

    width: int
    height: int
    left: int
    top: int
    right: int
    bottom: int


@dataclass(frozen=True)
class ScaleJitter(Augment):
    """One random view as of `Augment`, but scaled by a number from `scales` (1: the image just fits
    into a square of `max_side`), and cut to that square at a random place. What is smaller than the
    square stays so: padding comes later. Boxes of which nothing is left leave."""

    scales: tuple[float, float] = (0.1, 2.0)

    def with_masks(
        self,
        image: Image.Image,
        boxes: Tensor,
        masks: Sequence[bytes] | None,
        rng: random.Random,
    ) -> View:
        """See `Augment.with_masks`."""
        window = draw_window(image.size, rng.uniform(*self.scales), self.max_side, rng)
        boxes, kept = boxes_inside(boxes, image.size, window)
        moved = None
        if masks is not None:
            whole = image.height, image.width
            moved = resized([masks[k] for k in kept], whole, window.width, window.height)
            moved = moved[:, window.top : window.bottom, window.left : window.right]
        image = cut(image, window)
        if rng.random() < self.flip:
            image, boxes = horizontal_flip(image, boxes)
            moved = None if moved is None else moved.flip(-1)
        return View(pil_to_tensor(self.recoloured(image, rng)), boxes, moved, kept)


def draw_window(size: tuple[int, int], scale: float, side: int, rng: random.Random) -> Window:
    """What is seen of an image of (width, height) `size`, at a scale at which 1 makes its longer
    side `side` pixels."""
    factor = scale * side / max(size)
    width, height = (max(1, round(length * factor)) for length in size)
    left, top = (rng.randint(0, max(0, length - side)) for length in (width, height))
    return Window(width, height, left, top, min(width, left + side), min(height, top + side))


def cut(image: Image.Image, window: Window) -> Image.Image:
    """Scale an image and cut a window out of it; only that part is computed."""
    across, down = image.width / window.width, image.height / window.height
    part = (window.left * across, window.top * down, window.right * across, window.bottom * down)
    size = window.right - window.left, window.bottom - window.top
    return image.resize(size, Image.Resampling.BILINEAR, part)


def boxes_inside(boxes: Tensor, size: tuple[int, int], window: Window) -> tuple[Tensor, Tensor]:
    """Boxes (M, 4) xyxy of an image of (width, height) `size` as they are in the window, without
    those that leave, and the indices of the others, ascending."""
    factors = torch.tensor([window.width / size[0], window.height / size[1]]).repeat(2)
    start = torch.tensor([window.left, window.top]).repeat(2)
    end = torch.tensor([window.right, window.bottom]).repeat(2)
    inside = (boxes * factors).maximum(start).minimum(end) - start
    sides = inside[:, 2:] - inside[:, :2]
    kept = (sides >= LEAST_SIDE).all(dim=1).nonzero()[:, 0]
    return inside[kept], kept
