"""How much the features in front of the projector have grown in pre-training.

Embeddings are normalised to unit length, so the contrastive loss does not say how large the
features are that the projector reads. Where no normalisation layer sets their size, it drifts: with
AdamW RetinaNet's class tower grew to 40 times its size, Faster R-CNN's fully connected layers to 3.
A fresh classifier then starts with logits that are as many times too large (docs/adapters.md). So
the growth is watched here, and taken out of the weights in the end.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from losses.normalizer import mean_over_ranks

RATE = 0.05  # weight of a new step in the running mean


class FeatureScale(nn.Module):
    """Root mean square of features in the first step, and its running mean; kept in checkpoints."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("at_start", torch.zeros(()))
        self.register_buffer("now", torch.zeros(()))

    @torch.no_grad()
    def observe(self, features: Sequence[Tensor]) -> None:
        """Take in the features of a step, of any shapes; all ranks call it, also without any."""
        squares = torch.stack([x.float().square().sum() for x in features]).sum()
        total = mean_over_ranks(squares, minimum=0.0)
        count = mean_over_ranks(total.new_tensor(sum(x.numel() for x in features)))
        rms = (total / count).sqrt()
        rms = torch.where(rms > 0, rms, self.now)  # a step without features changes nothing
        started = self.at_start > 0
        self.now.copy_(torch.where(started, self.now.lerp(rms, RATE), rms))
        self.at_start.copy_(torch.where(started, self.at_start, rms))

    def growth(self) -> Tensor:
        """Running mean divided by first value, a scalar; 1 before the first features."""
        return torch.where(self.at_start > 0, self.now / self.at_start, torch.ones_like(self.now))
