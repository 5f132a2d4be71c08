"""BatchNorm with fixed statistics, weight and bias, as used to fine-tune detectors.

A detector sees only a few images per step, too few to estimate statistics, so the usual
recipe (He et al., "Mask R-CNN", section 3.1) keeps those of the classification pre-training.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


def convolve_and_normalise(conv: nn.Conv2d, norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    """`norm(conv(x))`, (N, C, H, W) to (N, C', H', W').

    With fixed statistics both are linear, so one convolution with scaled weights does both: the
    map is neither traversed nor kept for the backward pass a second time.
    """
    if norm.training:
        return norm(conv(x))
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()  # (C',)
    shift = norm.bias - norm.running_mean * scale
    weight = conv.weight * scale[:, None, None, None]
    return F.conv2d(x, weight, shift, conv.stride, conv.padding, conv.dilation, conv.groups)


class FrozenBatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` that is always in eval mode and has no trainable parameter.

    Its state_dict has the keys of `nn.BatchNorm2d`, `num_batches_tracked` included, so weights
    move between the two without renaming.
    """

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__(num_features, eps=eps)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> FrozenBatchNorm2d:
        """Stay in eval mode, whatever `mode` the detector around it is put in."""
        return super().train(False)
