"""How much the features in front of the projector have grown in pre-training.

Embeddings are normalised to unit length, so the contrastive loss does not set the size of the
features that the projector reads. Where no normalisation layer sets it, it drifts: with AdamW, the
features of RetinaNet's class tower grew to 40 times their size, those of Faster R-CNN's fully
connected layers to 3 times. A fresh classifier then starts with logits too large by the same factor
(docs/adapters.md). So pre-training measures the growth, and finally divides it out of the weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from losses.normalizer import mean_over_ranks

RATE = 0.05  # weight of a new step in the running mean


class FeatureScale(nn.Module):
    """Root mean square of features in the first step, and its running mean; kept in checkpoints.

    Args:
        layer: the layer that sets the size of the features, as a prefix of weight names.
        other_readers: names of the weights of other layers that take these features as input.
    """

    def __init__(self, layer: str, other_readers: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.layer, self.other_readers = layer, other_readers
        self.register_buffer("at_start", torch.zeros(()))
        self.register_buffer("now", torch.zeros(()))

    @torch.no_grad()
    def observe(self, features: Sequence[Tensor]) -> None:
        """Update with the features of a step, of any shapes; every rank must call it, even
        without features."""
        squares = torch.stack([x.float().square().sum() for x in features]).sum()
        total = mean_over_ranks(squares, minimum=0.0)
        count = mean_over_ranks(total.new_full((), sum(x.numel() for x in features)))
        rms = (total / count).sqrt()
        rms = torch.where(rms > 0, rms, self.now)  # a step without features changes nothing
        started = self.at_start > 0
        self.now.copy_(torch.where(started, self.now.lerp(rms, RATE), rms))
        self.at_start.copy_(torch.where(started, self.at_start, rms))

    def growth(self) -> Tensor:
        """Running mean divided by first value, a scalar; 1 before the first features."""
        return torch.where(self.at_start > 0, self.now / self.at_start, torch.ones_like(self.now))

    def scaled_back(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The state of a detector with features as large as at the start.

        No other prediction changes: the weights of other readers are scaled the opposite way.
        """
        growth = self.growth()
        result = dict(state)
        for name, value in state.items():
            if name.startswith(self.layer):
                result[name] = value / growth
            elif name in self.other_readers:
                result[name] = value * growth
        return result


def unnormalised_layer(detector: nn.Module, stack: str) -> str | None:
    """The layer that sets the size of the output of a stack of layers, as a prefix of weight names.

    Args:
        detector: holds the stack.
        stack: name of an `nn.Sequential` that ends in a ReLU.

    Returns:
        None if a normalisation layer sets it.
    """
    layers = detector.get_submodule(stack)
    before_relu = len(layers) - 2
    if before_relu < 0 or not isinstance(layers[before_relu], (nn.Conv2d, nn.Linear)):
        return None
    return f"{stack}.{before_relu}."
