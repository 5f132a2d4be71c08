"""What every backbone shares: five stages that can be frozen from the input upwards.

Legend: N images, C channels.
"""

from __future__ import annotations

from itertools import chain

from torch import nn

from models.backbone_import import BackboneImport
from models.checks import require_range


class StagedBackbone(nn.Module):
    """Base of the backbones: `forward(images)` maps (N, 3, H, W) to the maps [C2, C3, C4, C5].

    A backbone sets `name`, `channels` (of C2 to C5) and `stages`.
    """

    name: str
    channels: tuple[int, int, int, int]
    strides: tuple[int, int, int, int] = (4, 8, 16, 32)
    classifier_name: str = "fc"  # torchvision's name for the linear layer after this backbone
    frozen_stages: int = 0
    origin: BackboneImport | None = None  # where its weights come from; None: random

    @property
    def stages(self) -> list[list[nn.Module]]:
        """Five lists of modules, from input to output: the stem, then C2 to C5."""
        raise NotImplementedError

    def freeze(self, count: int) -> None:
        """Freeze the first `count` stages (0 none, 5 the whole backbone) for good.

        Frozen parameters need no gradient, and frozen stages stay in eval mode after `.train()`,
        so that their BatchNorm keeps its statistics.
        """
        require_range("model.frozen_stages", count, least=0, most=5)
        self.frozen_stages = max(count, self.frozen_stages)
        for module in chain(*self.stages[:count]):
            module.requires_grad_(False)
        self.train(self.training)

    def skip_maps(self, count: int) -> None:
        """Freeze what only the first `count` maps need, as nothing reads them: distributed training
        rejects parameters that never get a gradient. Here, deeper maps need everything."""

    def checkpoint_activations(self) -> None:
        """Keep only what enters each block, and compute the rest again in the backward pass.

        Raises:
            ValueError: this backbone cannot; BatchNorm would count every batch twice.
        """
        raise ValueError(
            f"model.checkpoint_activations is on, but {self.name} cannot; only the Swins can"
        )

    def train(self, mode: bool = True) -> StagedBackbone:
        """Put the trained stages in `mode`; the frozen ones stay in eval mode."""
        super().train(mode)
        for module in chain(*self.stages[: self.frozen_stages]):
            module.eval()
        return self


def init_convolutions(backbone: nn.Module) -> None:
    """Kaiming-normal, fan-out (He et al., "Delving deep into rectifiers", section 2.2)."""
    for module in backbone.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
