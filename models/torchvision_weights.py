"""Torchvision's detection weights under our names.

With them and `FCOSConfig.torchvision()` ours detects and learns what torchvision's does. Two
differences are deliberate: strides are the nominal 8, 16, ... (torchvision divides the padded
image's size by the map's, which moves the points if the size is no multiple of 128), and a point
whose distance is exactly on the border between two levels belongs to one of them (there: to none).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

# Torchvision's FPN had no ".0" behind the index before version 0.14.
FCOS_NAMES = (
    (r"backbone\.body\.(.+)", r"backbone.\1"),
    (r"backbone\.fpn\.inner_blocks\.(\d+)(?:\.0)?\.(weight|bias)", r"neck.lateral.\1.\2"),
    (r"backbone\.fpn\.layer_blocks\.(\d+)(?:\.0)?\.(weight|bias)", r"neck.output.\1.\2"),
    (r"backbone\.fpn\.extra_blocks\.(p6|p7)\.(weight|bias)", r"neck.\1.\2"),
    (r"head\.classification_head\.conv\.(\d+)\.(weight|bias)", r"head.cls_tower.\1.\2"),
    (r"head\.classification_head\.cls_logits\.(weight|bias)", r"head.cls_logits.\1"),
    (r"head\.regression_head\.conv\.(\d+)\.(weight|bias)", r"head.box_tower.\1.\2"),
    (r"head\.regression_head\.bbox_reg\.(weight|bias)", r"head.box_regression.\1"),
    (r"head\.regression_head\.bbox_ctrness\.(weight|bias)", r"head.centerness.\1"),
)


def fcos_from_torchvision(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state_dict of our `FCOS` from that of `fcos_resnet50_fpn`; tensors are not copied.

    `model.load_state_dict(result)` takes it, also where it was saved from torchvision's frozen
    BatchNorm, which has no step counter.

    Raises:
        ValueError: naming the first key that has no counterpart.
    """
    return {rename(key, FCOS_NAMES): tensor for key, tensor in state_dict.items()}


def rename(key: str, names: tuple[tuple[str, str], ...]) -> str:
    """`key` rewritten by the first pattern of `names` that matches all of it."""
    for pattern, replacement in names:
        match = re.fullmatch(pattern, key)
        if match:
            return match.expand(replacement)
    raise ValueError(
        f"{key} has no counterpart in our detector; "
        "give the state_dict of torchvision's fcos_resnet50_fpn"
    )
