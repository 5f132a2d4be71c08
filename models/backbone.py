"""Backbones by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn

from models.backbone_base import StagedBackbone
from models.checks import require_choice
from models.mobilenet_v2 import MobileNetV2
from models.norm import FrozenBatchNorm2d
from models.resnet import ResNet
from models.swin import SIZES, SwinTransformer

BACKBONES = {
    "resnet18": partial(ResNet, 18),
    "resnet34": partial(ResNet, 34),
    "resnet50": partial(ResNet, 50),
    "resnet101": partial(ResNet, 101),
    "mobilenet_v2": MobileNetV2,
    **{name: partial(SwinTransformer, size) for name, size in SIZES.items()},
}
WITHOUT_BATCH_NORM = frozenset(SIZES)
NORMS = {"frozen_bn": FrozenBatchNorm2d, "bn": nn.BatchNorm2d}


def build_backbone(name: str, norm: str = "frozen_bn", frozen_stages: int = 2) -> StagedBackbone:
    """Build a randomly initialised backbone.

    Args:
        name: a key of `BACKBONES`.
        norm: "frozen_bn" keeps the loaded statistics in all stages, "bn" trains BatchNorm. A
            backbone that has none, such as a Swin, takes only the default.
        frozen_stages: how many stages, starting with the stem, are not trained (0 none, 5 all).

    Raises:
        ValueError: for an unknown name or norm, a norm that the backbone does not have, or a number
            of stages outside 0..5.
    """
    require_choice("model.backbone", name, BACKBONES)
    require_choice("model.norm", norm, NORMS)
    if name in WITHOUT_BATCH_NORM and norm != "frozen_bn":
        raise ValueError(
            f"model.norm is {norm!r}, but {name} has no BatchNorm; leave model.norm at frozen_bn, "
            "which changes nothing there"
        )
    backbone = random_backbone(name, NORMS[norm])
    backbone.freeze(frozen_stages)
    return backbone


def random_backbone(name: str, norm: Callable[[int], nn.Module]) -> StagedBackbone:
    """The backbone of a name, all of it trained; `norm` makes its BatchNorms, if it has any."""
    build = BACKBONES[name]
    return build() if name in WITHOUT_BATCH_NORM else build(norm=norm)
