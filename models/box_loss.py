"""The box loss for detectors that predict boxes as changes to anchors or RoIs.

Legend: P positive anchors or RoIs.
"""

from __future__ import annotations

from torch import Tensor

from losses.iou import box_iou_loss
from losses.smooth_l1 import smooth_l1_loss
from models.coders import boxes_to_deltas, deltas_to_boxes

BOX_LOSSES = ("l1", "smooth_l1", "giou", "iou")


def box_loss(
    kind: str,
    deltas: Tensor,
    anchors: Tensor,
    boxes: Tensor,
    normalizer: Tensor | float,
    beta: float = 1.0,
    weights: tuple[float, float] = (1.0, 1.0),
) -> Tensor:
    """How far predicted boxes are from the boxes their anchors are matched with.

    Args:
        kind: "l1" and "smooth_l1" compare deltas, "giou" and "iou" compare boxes.
        deltas: (P, 4) predicted, in the units of `boxes_to_deltas` with the same `weights`.
        anchors: (P, 4) xyxy, in pixels.
        boxes: (P, 4) xyxy, in pixels, ground truth or proposals.
        normalizer: what the sum over pairs is divided by.
        beta: of "smooth_l1", in deltas.
        weights: see `boxes_to_deltas`.

    Returns:
        float32 scalar; 0 for P = 0, still attached to the graph.
    """
    deltas, boxes = deltas.float(), boxes.float()
    if kind in ("giou", "iou"):
        predicted = deltas_to_boxes(anchors, deltas, weights)
        return box_iou_loss(predicted, boxes, kind, normalizer=normalizer)
    target = boxes_to_deltas(anchors, boxes, weights)
    return smooth_l1_loss(deltas, target, beta if kind == "smooth_l1" else 0.0, normalizer)
