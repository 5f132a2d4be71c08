"""BatchNorm with separate statistics for parts of the batch, as if each part had its own GPU.

Legend: N images, C channels, G groups.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class GroupedBatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` that normalises G consecutive, equal parts of a training batch separately.

    This way, batches of the size that a recipe was made for fit on fewer, larger GPUs. With the
    same N / G, one process computes what G processes with plain BatchNorm do, except for the
    running statistics, which are updated with the mean over the groups.

    The state_dict is that of `nn.BatchNorm2d`, and evaluation is the same.
    """

    def __init__(self, num_features: int, groups: int = 1) -> None:
        super().__init__(num_features)
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the same; N must be a multiple of G in training."""
        if not self.training or self.groups == 1:
            return super().forward(x)
        if len(x) % self.groups:
            raise ValueError(f"a batch of {len(x)} cannot be split into {self.groups} equal groups")
        means = self.running_mean.repeat(self.groups, 1)  # (G, C)
        variances = self.running_var.repeat(self.groups, 1)
        parts = [
            F.batch_norm(part, mean, var, self.weight, self.bias, True, self.momentum, self.eps)
            for part, mean, var in zip(x.chunk(self.groups), means, variances, strict=True)
        ]
        self.running_mean.copy_(means.mean(dim=0))
        self.running_var.copy_(variances.mean(dim=0))
        self.num_batches_tracked += 1
        return torch.cat(parts)
