"""Losses as functions of tensors; nothing here knows about detectors or training."""

from losses.contrastive import (
    contrastive_loss,
    contrastive_statistics,
    find_pairs,
    instance_contrastive_loss,
)
from losses.focal import sigmoid_focal_loss
from losses.iou import box_iou_loss
from losses.normalizer import mean_over_ranks
from losses.smooth_l1 import smooth_l1_loss

__all__ = [
    "box_iou_loss",
    "contrastive_loss",
    "contrastive_statistics",
    "find_pairs",
    "instance_contrastive_loss",
    "mean_over_ranks",
    "sigmoid_focal_loss",
    "smooth_l1_loss",
]
