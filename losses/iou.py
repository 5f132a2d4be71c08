"""Box regression by overlap: IoU loss (Yu et al., UnitBox, ACM MM 2016, equation 2) and
GIoU loss (Rezatofighi et al., CVPR 2019, algorithm 2).

Legend: P pairs of boxes.
"""

from __future__ import annotations

import torch
from torch import Tensor

EPSILON = 1e-6  # keeps quotients and logarithms of empty or disjoint boxes finite


def box_iou_loss(
    pred_xyxy: Tensor,
    target_xyxy: Tensor,
    kind: str = "giou",
    weights: Tensor | None = None,
    normalizer: Tensor | float = 1.0,
) -> Tensor:
    """Penalty for predicted boxes that miss their target, pair by pair.

    Args:
        pred_xyxy: (P, 4) boxes with x1 <= x2 and y1 <= y2, in pixels.
        target_xyxy: (P, 4).
        kind: "giou" is 1 - GIoU, in 0..2; "iou" is -log IoU, as in FCOS, in 0..13.8.
        weights: (P,) factor of each pair, or None for 1.
        normalizer: what the sum over pairs is divided by.

    Returns:
        float32 scalar; 0 for no pairs, still attached to the graph.

    Raises:
        ValueError: for another kind.
    """
    if kind not in ("giou", "iou"):
        raise ValueError(f"the box loss is {kind!r}, which is unknown; valid: giou, iou")
    pred, target = pred_xyxy.float(), target_xyxy.float()
    pred_min, pred_max = pred[:, :2], pred[:, 2:]
    target_min, target_max = target[:, :2], target[:, 2:]
    overlap = area(torch.maximum(pred_min, target_min), torch.minimum(pred_max, target_max))
    union = area(pred_min, pred_max) + area(target_min, target_max) - overlap
    iou = overlap / union.clamp(min=EPSILON)  # (P,)
    if kind == "iou":
        loss = -iou.clamp(min=EPSILON).log()
    else:
        hull = area(torch.minimum(pred_min, target_min), torch.maximum(pred_max, target_max))
        loss = 1 - iou + (hull - union) / hull.clamp(min=EPSILON)
    if weights is not None:
        loss = loss * weights
    return loss.sum() / normalizer


def area(top_left: Tensor, bottom_right: Tensor) -> Tensor:
    """Area (P,) of boxes given by corners (P, 2); 0 where the corners are the wrong way round."""
    width, height = (bottom_right - top_left).clamp(min=0).unbind(1)
    return width * height
