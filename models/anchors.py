"""Where a pyramid's predictions are in the image.

Legend: N images, A anchors or points (all levels together, finest first, each level row by row),
B anchors per cell.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

ANCHOR_RATIOS = (0.5, 1.0, 2.0)  # height / width, for every detector here


def grid_points(
    feature_sizes: Sequence[tuple[int, int]],
    strides: Sequence[int],
    offset: float,
    device: torch.device | str | None = None,
) -> tuple[Tensor, Tensor]:
    """The image position of every cell on every level.

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


def cell_anchors(
    sizes: Sequence[float],
    ratios: Sequence[float],
    whole_pixels: bool = False,
    device: torch.device | str | None = None,
) -> Tensor:
    """The anchors of one cell, centred on the origin: every size at every ratio, area unchanged.

    Args:
        sizes: square roots of the areas, in pixels.
        ratios: height / width.
        whole_pixels: round sizes down and corners to whole pixels, as torchvision does.

    Returns:
        (B, 4) xyxy, float32; all sizes of the first ratio come first.
    """
    if whole_pixels:
        sizes = [int(size) for size in sizes]
    size = torch.tensor(sizes, dtype=torch.float32, device=device)
    root = torch.tensor(ratios, dtype=torch.float32, device=device).sqrt()[:, None]
    half = torch.stack(((size / root).flatten(), (size * root).flatten()), dim=1) / 2  # (B, 2)
    anchors = torch.cat((-half, half), dim=1)
    return anchors.round() if whole_pixels else anchors


def grid_anchors(
    feature_sizes: Sequence[tuple[int, int]],
    strides: Sequence[int],
    cells: Sequence[Tensor] | Tensor,
    offset: float,
) -> Tensor:
    """The anchors of every cell on every level; those of one cell are adjacent.

    Args:
        feature_sizes, strides, offset: see `grid_points`.
        cells: for each level, the (B, 4) anchors of a cell, from `cell_anchors`.

    Returns:
        (A, 4) xyxy, in pixels, float32, on the device of `cells`; some reach beyond the image.
    """
    anchors = []
    for size, stride, cell in zip(feature_sizes, strides, cells, strict=True):
        points, _ = grid_points([size], [stride], offset, cell.device)
        anchors.append((points.repeat(1, 2)[:, None] + cell).view(-1, 4))  # (H * W * B, 4)
    return torch.cat(anchors)


def flatten_predictions(maps: Sequence[Tensor], per_cell: int) -> Tensor:
    """Flatten maps of predictions into the order of `grid_anchors`.

    Args:
        maps: for each level, (N, B * X, H_i, W_i): X numbers per anchor.
        per_cell: B.

    Returns:
        (N, A, X).
    """
    flat = []
    for x in maps:
        count, channels = x.shape[:2]
        flat.append(x.permute(0, 2, 3, 1).reshape(count, -1, channels // per_cell))
    return torch.cat(flat, dim=1)
