"""Smooth L1 loss (Girshick, "Fast R-CNN", ICCV 2015, equation 3) and its limit, L1."""

from __future__ import annotations

import torch
from torch import Tensor


def smooth_l1_loss(
    pred: Tensor, target: Tensor, beta: float = 0.0, normalizer: Tensor | float = 1.0
) -> Tensor:
    """Absolute error, rounded off to a parabola where it is below `beta`.

    Args:
        pred: any shape.
        target: the same shape.
        beta: errors below it cost e^2 / (2 beta), errors above it e - beta / 2, so that slope and
            value are continuous; 0 is plain L1. The paper's equation has beta = 1.
        normalizer: what the sum over elements is divided by.

    Returns:
        float32 scalar >= 0; 0 for empty input, still attached to the graph.
    """
    error = (pred.float() - target.float()).abs()
    if beta > 0:
        error = torch.where(error < beta, error.square() / (2 * beta), error - beta / 2)
    return error.sum() / normalizer
