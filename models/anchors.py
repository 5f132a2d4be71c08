"""Where the predictions of a pyramid sit in the image.

Legend: A anchors or points, all levels together, finest level first, each level row by row.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def grid_points(
    feature_sizes: Sequence[tuple[int, int]],
    strides: Sequence[int],
    offset: float,
    device: torch.device | str | None = None,
) -> tuple[Tensor, Tensor]:
    """The image position of every cell of every level.

    Args:
        feature_sizes: (height, width) of each level, in cells.
        strides: nominal stride of each level, in pixels.
        offset: position in the cell, in strides: 0.5 is its centre (Tian et al., FCOS, eq. 1),
            0 its top left corner.

    Returns:
        points (A, 2) as xy, in pixels, and the stride of each point's level (A,), both float32.
    """
    points, point_strides = [], []
    for (height, width), stride in zip(feature_sizes, strides, strict=True):
        y = (torch.arange(height, device=device, dtype=torch.float32) + offset) * stride
        x = (torch.arange(width, device=device, dtype=torch.float32) + offset) * stride
        grid_y, grid_x = torch.meshgrid(y, x, indexing="ij")
        points.append(torch.stack((grid_x, grid_y), dim=-1).view(-1, 2))
        point_strides.append(x.new_full((height * width,), float(stride)))
    return torch.cat(points), torch.cat(point_strides)
