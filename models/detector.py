"""Detectors by name. A new one is a file in models/ and an entry in `DETECTORS`.

A detector class is constructed as `Detector(backbone, config, num_classes)`; its config is a
dataclass of plain numbers, strings and booleans that validates itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from models.backbone import build_backbone
from models.backbone_weights import load_backbone_weights
from models.checks import require_choice
from models.detr import DETR, DETRConfig
from models.faster_rcnn import FasterRCNN, FasterRCNNConfig
from models.fcos import FCOS, FCOSConfig
from models.from_mapping import from_mapping
from models.mask_rcnn import MaskRCNN, MaskRCNNConfig
from models.retinanet import RetinaNet, RetinaNetConfig

DETECTORS = {
    "fcos": (FCOS, FCOSConfig),
    "retinanet": (RetinaNet, RetinaNetConfig),
    "faster_rcnn": (FasterRCNN, FasterRCNNConfig),
    "mask_rcnn": (MaskRCNN, MaskRCNNConfig),
    "detr": (DETR, DETRConfig),
}


def learns_masks(detector: str) -> bool:
    """Whether targets of a detector, a key of `DETECTORS`, need masks."""
    return detector == "mask_rcnn"


@dataclass(frozen=True)
class ModelConfig:
    """The `model` section of a run's configuration."""

    detector: str = "fcos"  # a key of DETECTORS
    backbone: str = "resnet50"  # a key of models.backbone.BACKBONES
    # A file, a URL, or torchvision[:NAME], see models.weight_sources; None: random.
    backbone_weights: str | None = None
    backbone_partial: bool = False  # load what fits from a file that does not fit as a whole
    norm: str = "frozen_bn"  # of the backbone: "frozen_bn" or "bn"
    frozen_stages: int = 2  # of the backbone, starting with the stem: 0 none, 5 all
    checkpoint_activations: bool = False  # of a Swin: less memory, but blocks are computed twice
    options: Mapping[str, Any] = field(default_factory=dict)  # fields of the detector's own config


def build_detector(config: ModelConfig, num_classes: int) -> nn.Module:
    """A detector with random weights, except for the backbone if `config` names a file for it.

    Args:
        config: what to build.
        num_classes: K, without background; labels run from 0 to K-1.

    Raises:
        ValueError: naming the key, for an unknown name or option or a bad value, and naming the
            file, if the backbone's weights do not fit.
    """
    require_choice("model.detector", config.detector, DETECTORS)
    detector, config_class = DETECTORS[config.detector]
    options = from_mapping(config_class, config.options, "model.options.")
    backbone = build_backbone(config.backbone, config.norm, config.frozen_stages)
    if config.checkpoint_activations:
        backbone.checkpoint_activations()
    if config.backbone_weights is not None:
        load_backbone_weights(backbone, config.backbone_weights, config.backbone_partial)
    return detector(backbone, options, num_classes)
