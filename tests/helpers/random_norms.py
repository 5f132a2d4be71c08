"""Normalisation layers as training leaves them: fresh ones do next to nothing."""

from __future__ import annotations

from torch import nn


def randomise_norm(module: nn.BatchNorm2d | nn.GroupNorm) -> None:
    """Move statistics and affine parameters away from 0 and 1, in place."""
    if isinstance(module, nn.BatchNorm2d):
        module.running_mean.normal_(std=0.1)
        module.running_var.uniform_(0.5, 1.5)
        module.weight.data.uniform_(0.3, 0.8)
        module.bias.data.normal_(std=0.1)
    else:
        module.weight.data.uniform_(0.5, 1.5)
        module.bias.data.normal_(std=0.3)
