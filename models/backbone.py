"""Backbones by name, and loading classification weights into them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from os import PathLike

import torch
from torch import Tensor, nn

from models.choices import require_choice
from models.mobilenet_v2 import MobileNetV2
from models.norm import FrozenBatchNorm2d
from models.resnet import ResNet
from models.staged import StagedBackbone

BACKBONES = {
    "resnet18": partial(ResNet, 18),
    "resnet34": partial(ResNet, 34),
    "resnet50": partial(ResNet, 50),
    "resnet101": partial(ResNet, 101),
    "mobilenet_v2": MobileNetV2,
}
NORMS = {"frozen_bn": FrozenBatchNorm2d, "bn": nn.BatchNorm2d}
CLASSIFIER_PREFIXES = ("fc.", "classifier.")


def build_backbone(name: str, norm: str = "frozen_bn", frozen_stages: int = 2) -> StagedBackbone:
    """A randomly initialised backbone.

    Args:
        name: a key of `BACKBONES`.
        norm: "frozen_bn" keeps the loaded statistics in all stages, "bn" trains BatchNorm.
        frozen_stages: how many stages, from the stem on, are not trained (0 none, 5 all).

    Raises:
        ValueError: for an unknown name or norm, or a number of stages outside 0..5.
    """
    require_choice("model.backbone", name, BACKBONES)
    require_choice("model.norm", norm, NORMS)
    backbone = BACKBONES[name](norm=NORMS[norm])
    backbone.freeze(frozen_stages)
    return backbone


def load_backbone_weights(backbone: StagedBackbone, file: str | PathLike[str]) -> None:
    """Copy torchvision-named classification weights into `backbone`; the classifier is dropped.

    `file` holds a state_dict, or one under the key "model" or "state_dict".

    Raises:
        ValueError: naming the file, if it cannot be read or holds another architecture's weights.
    """
    weights = read_state_dict(file)
    weights = {k: v for k, v in weights.items() if not k.startswith(CLASSIFIER_PREFIXES)}
    problem = first_mismatch(weights, backbone.state_dict())
    if problem:
        raise ValueError(
            f"{file} are not weights of {backbone.name}: {problem}; "
            "set model.backbone to the architecture of the file, or give another file"
        )
    # A plain dict has no version, so BatchNorm accepts old files without its step counter.
    backbone.load_state_dict(weights)


def read_state_dict(file: str | PathLike[str]) -> Mapping[str, Tensor]:
    """The state_dict in `file`, on the CPU.

    Raises:
        ValueError: naming the file, if it cannot be read or holds no state_dict.
    """
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file fails in ways torch.load does not list
        raise ValueError(
            f"{file} cannot be read as PyTorch weights ({type(error).__name__}); "
            "give a file that torch.save wrote from a state_dict"
        ) from error
    for key in ("model", "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    tensors = isinstance(content, Mapping) and content
    if not tensors or not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(
            f"{file} holds no state_dict; give a file that torch.save wrote from a state_dict"
        )
    return content


def first_mismatch(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str | None:
    """What keeps `weights` from fitting `expected`, in a few words, or None if they fit."""
    for key, tensor in expected.items():
        if key not in weights and not key.endswith("num_batches_tracked"):
            return f"{key} is missing"
        if key in weights and weights[key].shape != tensor.shape:
            return f"{key} is {tuple(weights[key].shape)} instead of {tuple(tensor.shape)}"
    unexpected = [key for key in weights if key not in expected]
    return f"{unexpected[0]} is unexpected" if unexpected else None
