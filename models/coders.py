"""Boxes as numbers a network can predict, and back.

Boxes are xyxy in pixels; the leading dimensions "..." are arbitrary and broadcast.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

MAX_LOG_SCALE = math.log(1000 / 16)  # a box is at most 62 times its anchor: exp must not overflow


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
    # Rounding can put a point just outside its box: the root must not be of a negative number.
    return (ratio_x.clamp(min=0) * ratio_y.clamp(min=0)).sqrt()


def boxes_to_deltas(
    anchors: Tensor, boxes: Tensor, weights: tuple[float, float] = (1.0, 1.0)
) -> Tensor:
    """Deltas from anchors (..., 4) to boxes (..., 4): Girshick et al., R-CNN, equations 6 to 9.

    Args:
        anchors: xyxy, in pixels, of positive width and height.
        boxes: xyxy, in pixels, of positive width and height.
        weights: factors for the shifts and the log scales; they bring the numbers into a range
            that a network predicts well.

    Returns:
        (..., 4): shift of the centre in x and y, in anchor widths and heights, and the logarithms
        of the ratios of widths and of heights.
    """
    anchor_size = anchors[..., 2:] - anchors[..., :2]
    center_difference = (boxes[..., :2] + boxes[..., 2:] - anchors[..., :2] - anchors[..., 2:]) / 2
    shift = center_difference / anchor_size
    log_scale = ((boxes[..., 2:] - boxes[..., :2]) / anchor_size).log()
    return torch.cat((shift * weights[0], log_scale * weights[1]), dim=-1)


def deltas_to_boxes(
    anchors: Tensor, deltas: Tensor, weights: tuple[float, float] = (1.0, 1.0)
) -> Tensor:
    """Turn `anchors` (..., 4) into boxes (..., 4) by applying `deltas` (..., 4).

    Inverse of `boxes_to_deltas`, up to a box `exp(MAX_LOG_SCALE)` times as large as its anchor.
    """
    anchor_size = anchors[..., 2:] - anchors[..., :2]
    anchor_center = (anchors[..., :2] + anchors[..., 2:]) / 2
    center = anchor_center + deltas[..., :2] / weights[0] * anchor_size
    log_scale = (deltas[..., 2:] / weights[1]).clamp(max=MAX_LOG_SCALE)
    half_size = log_scale.exp() * anchor_size / 2
    return torch.cat((center - half_size, center + half_size), dim=-1)
