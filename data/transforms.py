"""Image transforms with boxes: geometric ones move both, photometric ones change pixels only.

Every stage uses these: two-view pre-training, fine-tuning and evaluation. Functions are
deterministic; `Augment` draws their arguments from the random stream it is given, so that a
sample depends on its seed alone and not on workers, ranks or what was drawn before.

Legend: M boxes, H x W pixels.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from data.images import REDUCED, reduced
from data.masks import resized


def resized_size(height: int, width: int, short_side: int, max_side: int) -> tuple[int, int]:
    """(height, width) with the short side at `short_side`, the long one at most `max_side`."""
    scale = min(short_side / min(height, width), max_side / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def resize(
    image: Image.Image, boxes: Tensor, short_side: int, max_side: int
) -> tuple[Image.Image, Tensor]:
    """Resize, keeping the aspect ratio (bilinear, anti-aliased); boxes (M, 4) xyxy scale too.

    Of an image that was decoded smaller (`data.images.reduced`) sizes and boxes are the whole's.
    """
    scale, (whole_width, whole_height), part = reduced(image)
    height, width = resized_size(whole_height, whole_width, short_side, max_side)
    # Rounding to whole pixels makes the two factors differ a little; each axis takes its own.
    factors = torch.tensor([width / whole_width, height / whole_height]).repeat(2)
    if scale > 1:
        image = image.resize((width, height), Image.Resampling.BILINEAR, part)
        del image.info[REDUCED]
    elif (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    return image, boxes * factors


def horizontal_flip(image: Image.Image, boxes: Tensor) -> tuple[Image.Image, Tensor]:
    """Mirror left-right; boxes (M, 4) xyxy, edges in continuous coordinates: x -> W - x."""
    x1, y1, x2, y2 = boxes.unbind(dim=1)
    flipped = torch.stack([image.width - x2, y1, image.width - x1, y2], dim=1)
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), flipped


def pil_to_tensor(image: Image.Image) -> Tensor:
    """RGB image to uint8 (3, H, W), whose rows lie in memory as in an image, pixel after pixel:
    they are copied whole into a batch. `data.normalise` makes floats of it."""
    return torch.from_numpy(np.array(image, dtype=np.uint8)).permute(2, 0, 1)


# Strength m is in 0..1. Enhancers take a factor around 1: 0.1 (weak) to 1.9 (strong).
PHOTOMETRIC: dict[str, Callable[[Image.Image, float], Image.Image]] = {
    "identity": lambda image, m: image,
    "auto_contrast": lambda image, m: ImageOps.autocontrast(image),
    "equalize": lambda image, m: ImageOps.equalize(image),
    "solarize": lambda image, m: ImageOps.solarize(image, threshold=round(256 * (1 - m))),
    "colour": lambda image, m: ImageEnhance.Color(image).enhance(0.1 + 1.8 * m),
    "contrast": lambda image, m: ImageEnhance.Contrast(image).enhance(0.1 + 1.8 * m),
    "brightness": lambda image, m: ImageEnhance.Brightness(image).enhance(0.1 + 1.8 * m),
    "sharpness": lambda image, m: ImageEnhance.Sharpness(image).enhance(0.1 + 1.8 * m),
    "posterize": lambda image, m: ImageOps.posterize(image, 8 - round(4 * m)),
}


def photometric(image: Image.Image, operation: str, strength: float) -> Image.Image:
    """Apply one of `PHOTOMETRIC` (AlignDet's list, as in soft teacher) with strength in 0..1."""
    return PHOTOMETRIC[operation](image, strength)


class View(NamedTuple):
    """An image as one view shows it."""

    image: Tensor  # (3, H, W) uint8
    boxes: Tensor  # (M, 4) xyxy in its pixels
    masks: Tensor | None  # (M, H, W) uint8
    kept: Tensor  # (M,) which boxes these are; all of them, unless the view is cut


@dataclass(frozen=True)
class Augment:
    """One random view of an image and its boxes: resize, flip, one photometric operation.

    Padding comes later, when views are batched: padding before a flip would shift the boxes.
    """

    short_sides: Sequence[int] = (800,)  # one is drawn for each view
    max_side: int = 1333  # cap of the long side
    flip: float = 0.5  # probability
    photometric: bool = False  # one operation, drawn uniformly

    def __call__(
        self, image: Image.Image, boxes: Tensor, rng: random.Random
    ) -> tuple[Tensor, Tensor]:
        """Return the image (3, H, W) uint8 and its boxes (M, 4) xyxy."""
        view = self.with_masks(image, boxes, None, rng)
        return view.image, view.boxes

    def with_masks(
        self,
        image: Image.Image,
        boxes: Tensor,
        masks: Sequence[bytes] | None,
        rng: random.Random,
    ) -> View:
        """The same with masks, if there are any: RLE to (M, H, W) uint8, see `data.masks`."""
        whole_width, whole_height = reduced(image).size
        image, boxes = resize(image, boxes, rng.choice(self.short_sides), self.max_side)
        flip = rng.random() < self.flip
        if flip:
            image, boxes = horizontal_flip(image, boxes)
        moved = None
        if masks is not None:
            moved = resized(masks, (whole_height, whole_width), *image.size, flip)
        return View(
            pil_to_tensor(self.recoloured(image, rng)), boxes, moved, torch.arange(len(boxes))
        )

    def recoloured(self, image: Image.Image, rng: random.Random) -> Image.Image:
        """The image after one photometric operation, if it is to have one."""
        if not self.photometric:
            return image
        operation = rng.choice(list(PHOTOMETRIC))
        return photometric(image, operation, rng.random())
