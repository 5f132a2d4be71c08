"""Colour spaces for selective search: strategies that see the same image differently.

Each function maps (N, 3, H, W) float32 RGB, whole numbers in 0..255, to (N, C, H, W) float32 in
about 0..255. The numbers do not depend on the batch, the memory layout or the device, not even in
the last bit: roots and powers, which might, are looked up in tables made on the CPU, and divisors
are tensors, see `divide`.

Legend: N images, C channels, H, W height and width.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

LAB_STEPS = 4095  # of the table of cube roots


def rgb(image: Tensor) -> Tensor:
    """Red, green and blue as they are."""
    return image


def rgb_to_hsv(image: Tensor) -> Tensor:
    """Hue (0..255 for a full turn; 0 for greys), saturation and value."""
    red, green, blue = image.unbind(dim=1)
    value, low = image.amax(dim=1), image.amin(dim=1)
    spread = value - low
    divisor = spread.clamp(min=1)  # greys have no hue; others have a spread of at least 1
    turn = torch.where(value == green, (blue - red) / divisor + 2, (red - green) / divisor + 4)
    turn = torch.where(value == red, ((green - blue) / divisor) % 6, turn)
    hue = turn * (255 / 6)
    saturation = spread / value.clamp(min=1) * 255
    return torch.stack([hue, saturation, value], dim=1)


def rgb_to_lab(image: Tensor) -> Tensor:
    """CIE L*a*b* of sRGB under D65; L* is scaled to 0..255, a* and b* are shifted by 128."""
    level = torch.arange(256, dtype=torch.float64) / 255
    linear = torch.where(level > 0.04045, ((level + 0.055) / 1.055) ** 2.4, level / 12.92)
    linear = linear.float().to(image.device)
    red, green, blue = linear[image.long()].unbind(dim=1)
    x = divide(red * 0.4124 + green * 0.3576 + blue * 0.1805, 0.9505)
    y = red * 0.2126 + green * 0.7152 + blue * 0.0722
    z = divide(red * 0.0193 + green * 0.1192 + blue * 0.9505, 1.0890)
    amount = torch.arange(LAB_STEPS + 1, dtype=torch.float64) / LAB_STEPS
    root = torch.where(
        amount > (6 / 29) ** 3, amount ** (1 / 3), amount / (3 * (6 / 29) ** 2) + 4 / 29
    )
    root = root.float().to(image.device)
    x, y, z = (root[(v * LAB_STEPS).round().long().clamp(max=LAB_STEPS)] for v in (x, y, z))
    return torch.stack([(116 * y - 16) * 2.55, 500 * (x - y) + 128, 200 * (y - z) + 128], dim=1)


def divide(values: Tensor, number: float) -> Tensor:
    """`values` / `number`, rounded in the same way on every device.

    CUDA divides by a number of Python as a multiplication with its reciprocal, which rounds twice.
    Only powers of two can be written as they are.
    """
    return values / values.new_full((), number)


COLOUR_SPACES: dict[str, Callable[[Tensor], Tensor]] = {
    "rgb": rgb,
    "hsv": rgb_to_hsv,
    "lab": rgb_to_lab,
}
