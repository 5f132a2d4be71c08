"""A small DETR on a backbone that computes next to nothing, or on a ResNet-18."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models import build_backbone
from models.backbone_base import StagedBackbone
from models.detr import DETR, DETRConfig

SMALL = {
    **{"width": 32, "heads": 4, "encoder_layers": 2, "decoder_layers": 2, "feedforward": 48},
    **{"queries": 10, "dropout": 0.0},
}


class Patches(StagedBackbone):
    """Maps whose cells see their own pixels only, so that padding does not reach into an image."""

    channels = (8, 8, 8, 8)

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(nn.Conv2d(3, 8, s, s) for s in self.strides)

    @property
    def stages(self) -> list[list[nn.Module]]:
        """No stem."""
        return [[], *([layer] for layer in self.convolutions)]

    def forward(self, images: Tensor) -> list[Tensor]:
        """Images (N, 3, H, W) to [C2, C3, C4, C5]."""
        return [layer(images).relu() for layer in self.convolutions]


def small_detr(num_classes: int, backbone: str = "patches", **options: object) -> DETR:
    """Random weights, always the same."""
    torch.manual_seed(0)
    built = Patches() if backbone == "patches" else build_backbone(backbone)
    return DETR(built, DETRConfig(**{**SMALL, **options}), num_classes)
