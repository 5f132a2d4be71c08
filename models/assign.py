"""Which box does a prediction answer for? Pure functions from geometry to box indices.

An assigner returns the *index* of the matched box, not its class: fine-tuning uses it to look up
class labels, AlignDet's pre-training (section 3.3 of the paper) to look up instance ids.

Legend: N images, A anchors or points, M boxes, P positives, C boxes compared at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.ops import box_iou

from models.checks import require_range

BACKGROUND = -1  # answers for no box: a negative
IGNORE = -2  # neither positive nor negative: takes no part in the loss
BOXES_AT_ONCE = 16  # boxes whose overlaps with all anchors are in memory at a time


def reach_bounds(strides: Tensor, reach_per_stride: float = 8.0) -> tuple[Tensor, Tensor]:
    """The sizes each level handles (FCOS, section 3.2): 0-64 px at stride 8, 64-128 at 16, ...

    Args:
        strides: (A,) stride of each point's level, doubling from level to level.
        reach_per_stride: upper bound in strides; the lower bound is half of it.

    Returns:
        lower (A,) and upper (A,), in pixels: 0 at the finest level, infinity at the coarsest.
    """
    lower = strides * (reach_per_stride / 2)
    upper = strides * reach_per_stride
    lower = lower.masked_fill(strides == strides.min(), 0.0)
    upper = upper.masked_fill(strides == strides.max(), float("inf"))
    return lower, upper


def assign_points(
    points: Tensor,
    strides: Tensor,
    lower: Tensor,
    upper: Tensor,
    boxes: Tensor,
    center_radius: float | None,
) -> Tensor:
    """Match each point with the smallest box around it (Tian et al., FCOS, section 3.1).

    A point matches a box if it is strictly inside, less than `center_radius` strides away from the
    centre in x and y (centre sampling, FCOS, TPAMI version, section 2.1), and if its largest
    distance to a side is in [lower, upper), so that boxes of one size belong to one level.

    Args:
        points: (A, 2) xy, in pixels.
        strides: (A,) stride of each point's level.
        lower, upper: (A,) bounds on the largest distance to a side, in pixels.
        boxes: (M, 4) xyxy, in pixels; M may be 0. A box without area matches nothing.
        center_radius: in strides; None switches centre sampling off.

    Returns:
        (A,) int64, the index of the box or `BACKGROUND`. If areas are equal, the first box wins.
    """
    if len(boxes) == 0:
        return torch.full((len(points),), BACKGROUND, dtype=torch.int64, device=points.device)
    half_width, half_height = ((boxes[:, 2:] - boxes[:, :2]) / 2).unbind(1)  # (M,)
    center_x, center_y = ((boxes[:, 2:] + boxes[:, :2]) / 2).unbind(1)  # (M,)
    # Distances from the centre are enough: |dx| < w/2 is inside, |dx| + w/2 the farther side.
    dx = (points[:, 0, None] - center_x).abs()  # (A, M)
    dy = (points[:, 1, None] - center_y).abs()  # (A, M)
    match = (dx < half_width) & (dy < half_height)
    if center_radius is not None:
        match &= torch.maximum(dx, dy) < center_radius * strides[:, None]
    reach = torch.maximum(dx + half_width, dy + half_height)
    match &= (reach >= lower[:, None]) & (reach < upper[:, None])
    areas = (4 * half_width * half_height).expand_as(dx)
    smallest, index = areas.masked_fill(~match, float("inf")).min(dim=1)
    return index.masked_fill(smallest == float("inf"), BACKGROUND)


def assign_by_iou(
    anchors: Tensor, boxes: Tensor, foreground: float, background: float, low_quality: bool
) -> Tensor:
    """Match each anchor with the box it overlaps most (Ren et al., Faster R-CNN, section 3.1.2).

    Args:
        anchors: (A, 4) xyxy, in pixels.
        boxes: (M, 4) xyxy, in pixels; M may be 0. A box without area matches nothing.
        foreground: an anchor with at least this IoU is positive.
        background: one with less than this IoU is negative; between the two it is ignored.
        low_quality: also make the anchors positive that no other anchor beats in IoU with some
            box, at any IoU above 0. Such an anchor answers for the box that it overlaps most
            itself, which may be another: a small box within a large one can go unmatched.

    Returns:
        (A,) int64, the index of the box, `BACKGROUND` or `IGNORE`. If IoUs are equal, the first
        box wins.
    """
    best = anchors.new_zeros(len(anchors))
    index = torch.zeros(len(anchors), dtype=torch.int64, device=anchors.device)
    promoted = torch.zeros_like(index, dtype=torch.bool)
    chunks = boxes.split(BOXES_AT_ONCE) if len(boxes) and len(anchors) else ()
    for number, chunk in enumerate(chunks):
        iou = box_iou(chunk, anchors).nan_to_num(0.0)  # (C, A); 0 / 0 for two boxes without area
        value, row = iou.max(dim=0)
        index = torch.where(value > best, row + number * BOXES_AT_ONCE, index)
        best = torch.maximum(best, value)
        if low_quality:
            best_of_box = iou.amax(dim=1, keepdim=True)  # (C, 1)
            promoted |= ((iou == best_of_box) & (best_of_box > 0)).any(dim=0)
    matched = index.masked_fill(best < foreground, IGNORE)
    matched = matched.masked_fill(best < background, BACKGROUND)
    return torch.where(promoted, index, matched)


def require_thresholds(prefix: str, foreground: float, background: float) -> None:
    """Raise a ValueError unless 0 < background <= foreground <= 1; for `assign_by_iou`.

    Args:
        prefix: start of the keys in the message.
        foreground, background: IoU thresholds.
    """
    require_range(f"{prefix}foreground_iou", foreground, above=0, most=1)
    require_range(f"{prefix}background_iou", background, above=0, most=foreground)


def look_up(values: Sequence[Tensor], matched: Sequence[Tensor] | Tensor) -> list[Tensor]:
    """The class label of the box that each prediction answers for, or its instance id.

    Args:
        values: for each image, (M,) int64 >= 0: one per box.
        matched: for each image, (A,) from an assigner; A may differ.

    Returns:
        For each image, (A,) values; `BACKGROUND` and `IGNORE` stay as they are.
    """
    return [
        torch.where(indices >= 0, of_box[indices.clamp(min=0)], indices) if len(of_box) else indices
        for of_box, indices in zip(values, matched, strict=True)
    ]


class Positives(NamedTuple):
    """The predictions of a batch that answer for a box, image by image."""

    index: Tensor  # (P,) into the predictions of all images
    box: Tensor  # (P,) into the boxes of all images


def find_positives(matched: Sequence[Tensor] | Tensor, boxes: Sequence[Tensor]) -> Positives:
    """Find the positives of a batch; on a GPU this waits once, whatever N is.

    Args:
        matched: for each image, (A,) from an assigner; A may differ.
        boxes: for each image, (M, ...): one row per box.
    """
    index = (torch.cat(list(matched)) >= 0).nonzero().squeeze(1)  # (P,)
    box, first = [], 0
    for of_image, rows in zip(matched, boxes, strict=True):
        box.append(of_image + first)
        first += len(rows)
    return Positives(index, torch.cat(box)[index])
