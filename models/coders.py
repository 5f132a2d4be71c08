"""Boxes as numbers a network can predict, and back.

Boxes are xyxy in pixels; the leading dimensions "..." are arbitrary and broadcast.
"""

from __future__ import annotations

import torch
from torch import Tensor


def boxes_to_distances(points: Tensor, boxes: Tensor) -> Tensor:
    """Distances of points (..., 2) to the sides of boxes (..., 4): left, top, right, bottom.

    In pixels, all positive if the point is inside (FCOS, equation 1). Returns (..., 4).
    """
    return torch.cat((points - boxes[..., :2], boxes[..., 2:] - points), dim=-1)


def distances_to_boxes(points: Tensor, distances: Tensor) -> Tensor:
    """The boxes (..., 4) whose sides are `distances` (..., 4) away from `points` (..., 2).

    Inverse of `boxes_to_distances`.
    """
    return torch.cat((points - distances[..., :2], points + distances[..., 2:]), dim=-1)


def centerness_target(distances: Tensor) -> Tensor:
    """How central a point is in its box: 1 at the centre, 0 on a side (FCOS, equation 3).

    Args:
        distances: (..., 4) left, top, right, bottom, of points inside their box.

    Returns:
        (...) in 0..1.
    """
    left, top, right, bottom = distances.unbind(-1)
    ratio_x = torch.minimum(left, right) / torch.maximum(left, right)
    ratio_y = torch.minimum(top, bottom) / torch.maximum(top, bottom)
    # A point a rounding error outside of its box must not become the root of a negative number.
    return (ratio_x.clamp(min=0) * ratio_y.clamp(min=0)).sqrt()
