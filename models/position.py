"""Where the cells of a map lie: which are inside their image, and sine encodings of their places.

Images of a batch are padded on the right and below to a common size. Cells in the padding are
masked, and positions count from 0 to 1 within the true image, so that what is computed for an image
does not depend on those beside it.

Legend: N images, H x W cells of a map, L cells along one side, C channels.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

TEMPERATURE = 10_000.0  # ratio of the longest to the shortest wavelength
EPSILON = 1e-6


def cells_inside(lengths: Tensor, count: int, stride: int) -> Tensor:
    """Which cells along one side of a map begin inside their image.

    Args:
        lengths: (N,) true heights, or widths, in pixels.
        count: L.
        stride: pixels per cell.

    Returns:
        (N, L) bool.
    """
    first = torch.arange(count, device=lengths.device) * stride
    return first < lengths[:, None]


def sine_encoding(inside: Tensor, channels: int) -> Tensor:
    """Sines and cosines of the position of cells along one side, at several wavelengths.

    Vaswani et al., "Attention is all you need", section 3.5, where the position is that in the true
    image, from 0 to 2 pi (Carion et al., DETR, supplement A.4).

    Args:
        inside: (N, L) from `cells_inside`.
        channels: how many numbers encode a position; even.

    Returns:
        (N, L, channels) float32, see `sine_of`.
    """
    number = torch.arange(1, inside.shape[1] + 1, device=inside.device)
    position = number.float() / (inside.sum(dim=1, keepdim=True) + EPSILON) * (2 * math.pi)
    return sine_of(position, channels)


def sine_of(position: Tensor, channels: int) -> Tensor:
    """Sine and cosine in turns, of ever longer waves, of positions (...): (..., channels)."""
    pair = torch.arange(channels // 2, device=position.device).float()
    angle = position[..., None] / TEMPERATURE ** (2 * pair / channels)  # (..., channels / 2)
    return torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(-2)


def encode_cells(
    heights: Tensor, widths: Tensor, map_size: tuple[int, int], stride: int, channels: int
) -> tuple[Tensor, Tensor]:
    """Encode the places of all cells of a batch of maps.

    Args:
        heights, widths: (N,) true ones of the images, in pixels.
        map_size: (H, W).
        stride: pixels per cell.
        channels: C, a multiple of 4.

    Returns:
        positions (N, H * W, C) float32, of which the first half encodes the row, and inside
        (N, H * W) bool.
    """
    height, width = map_size
    rows = cells_inside(heights, height, stride)  # (N, H)
    columns = cells_inside(widths, width, stride)  # (N, W)
    y = sine_encoding(rows, channels // 2)[:, :, None].expand(-1, -1, width, -1)
    x = sine_encoding(columns, channels // 2)[:, None].expand(-1, height, -1, -1)
    positions = torch.cat((y, x), dim=3)  # (N, H, W, C)
    inside = rows[:, :, None] & columns[:, None]
    return positions.flatten(1, 2), inside.flatten(1)
