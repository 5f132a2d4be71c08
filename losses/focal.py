"""Focal loss (Lin et al., "Focal loss for dense object detection", ICCV 2017, equation 5)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def sigmoid_focal_loss(
    logits: Tensor,
    targets: Tensor,
    alpha: float = 0.25,
    gamma: float = 2.0,
    normalizer: Tensor | float = 1.0,
) -> Tensor:
    """Binary cross entropy in which easy examples count little: -a_t (1 - p_t)^gamma log(p_t).

    Args:
        logits: any shape, one binary problem per element.
        targets: the same shape, 0 (or False) and 1 (or True).
        alpha: weight of the positives, in 0..1; negatives get 1 - alpha. A negative value switches
            the weights off.
        gamma: focusing exponent >= 0; 0 gives plain cross entropy.
        normalizer: what the sum over elements is divided by, usually the number of positives.

    Returns:
        float32 scalar >= 0; 0 for empty input, still attached to the graph.
    """
    positive = targets > 0
    # With the sign flipped for positives, 1 - p_t = sigmoid(wrong) and -log(p_t) = softplus(wrong).
    wrong = torch.where(positive, -logits, logits).float()
    loss = wrong.sigmoid().pow(gamma) * F.softplus(wrong)
    if alpha >= 0:
        loss = loss * torch.where(positive, alpha, 1 - alpha)
    return loss.sum() / normalizer


def one_hot(classes: Tensor, num_classes: int) -> Tensor:
    """The targets of elements of known class, (..., K) bool.

    Args:
        classes: (...) int64 in 0..K-1, or negative for background, which belongs to no class.
        num_classes: K.
    """
    targets = torch.zeros(*classes.shape, num_classes, dtype=torch.bool, device=classes.device)
    foreground = classes >= 0
    return targets.scatter_(-1, classes.clamp(min=0)[..., None], foreground[..., None])
