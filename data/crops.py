"""Views of whole images, to train a backbone: random crops with colour changes, centre crops.

As in `data.transforms`, functions are deterministic and the classes draw their arguments from the
random stream they are given.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import NamedTuple

from PIL import Image, ImageEnhance, ImageFilter
from torch import Tensor

from data.transforms import pil_to_tensor, resized_size

LOG_ASPECT = math.log(4 / 3)  # crops have an aspect ratio of 3/4 to 4/3, uniform in its logarithm
ATTEMPTS = 10  # to draw a crop that fits into the image
CENTRE = 224 / 256  # fraction of the resized short side that a centre crop keeps, as is customary


class Box(NamedTuple):
    """A crop in pixels, as Pillow takes it."""

    left: int
    top: int
    right: int
    bottom: int


def random_crop(width: int, height: int, least_area: float, rng: random.Random) -> Box:
    """Draw a crop (Szegedy et al., "Going deeper with convolutions", section 6).

    Its area is uniform in `least_area`..1 of the image's. If no draw fits, which happens with very
    long images, the crop is the largest centred one of an allowed aspect ratio.
    """
    for _ in range(ATTEMPTS):
        area = rng.uniform(least_area, 1.0) * width * height
        aspect = math.exp(rng.uniform(-LOG_ASPECT, LOG_ASPECT))
        crop_width, crop_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            left = rng.randint(0, width - crop_width)
            top = rng.randint(0, height - crop_height)
            return Box(left, top, left + crop_width, top + crop_height)
    limit = math.exp(LOG_ASPECT)
    crop_width = max(1, min(width, round(height * limit)))
    crop_height = max(1, min(height, round(width * limit)))
    left, top = (width - crop_width) // 2, (height - crop_height) // 2
    return Box(left, top, left + crop_width, top + crop_height)


def shift_hue(image: Image.Image, turns: float) -> Image.Image:
    """Turn the colour wheel by `turns` in -0.5..0.5."""
    hue, saturation, value = image.convert("HSV").split()
    # Pillow's hue is a byte that wraps around.
    hue = hue.point([(level + int(turns * 255)) % 256 for level in range(256)])
    return Image.merge("HSV", (hue, saturation, value)).convert("RGB")


def jitter_colour(
    image: Image.Image, strength: float, hue: float, rng: random.Random
) -> Image.Image:
    """Change brightness, contrast and saturation by factors in 1 - strength..1 + strength, and the
    hue by up to `hue` turns, one after the other in a random order."""
    operations = ["brightness", "contrast", "saturation", "hue"]
    rng.shuffle(operations)
    for operation in operations:
        if operation == "hue":
            image = shift_hue(image, rng.uniform(-hue, hue))
        else:
            factor = rng.uniform(1 - strength, 1 + strength)
            image = ENHANCERS[operation](image).enhance(factor)
    return image


ENHANCERS = {
    "brightness": ImageEnhance.Brightness,
    "contrast": ImageEnhance.Contrast,
    "saturation": ImageEnhance.Color,
}


@dataclass(frozen=True)
class RandomCrop:
    """A training view: random crop, flip and, for contrastive learning, changes of colour.

    With `colour`, the colour changes default to those of MoCo v2 (arXiv 2003.04297, section 3);
    without it there are only the crop and the flip, as in supervised training.
    """

    size: int  # pixels of either side
    least_area: float  # of a crop, as a fraction of the image
    colour: bool  # jitter, grey and blur
    jitter: float = 0.8  # probability of changing the colours
    grey: float = 0.2  # probability
    blur: float = 0.5  # probability
    flip: float = 0.5  # probability

    def __call__(self, image: Image.Image, rng: random.Random) -> Tensor:
        """(3, size, size) uint8."""
        box = random_crop(image.width, image.height, self.least_area, rng)
        image = image.crop(box).resize((self.size, self.size), Image.Resampling.BILINEAR)
        if self.colour:
            image = self._change_colours(image, rng)
        if rng.random() < self.flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return pil_to_tensor(image)

    def _change_colours(self, image: Image.Image, rng: random.Random) -> Image.Image:
        if rng.random() < self.jitter:
            image = jitter_colour(image, strength=0.4, hue=0.1, rng=rng)
        if rng.random() < self.grey:
            image = image.convert("L").convert("RGB")
        if rng.random() < self.blur:
            image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.1, 2.0)))
        return image


@dataclass(frozen=True)
class CentreCrop:
    """The view of evaluation: the middle of the image, the same each time."""

    size: int  # pixels of either side

    def __call__(self, image: Image.Image, rng: random.Random | None = None) -> Tensor:
        """(3, size, size) uint8; nothing is drawn."""
        long_side = self.size * max(image.size)  # no cap
        height, width = resized_size(
            image.height, image.width, round(self.size / CENTRE), long_side
        )
        image = image.resize((width, height), Image.Resampling.BILINEAR)
        left, top = (image.width - self.size) // 2, (image.height - self.size) // 2
        return pil_to_tensor(image.crop((left, top, left + self.size, top + self.size)))
