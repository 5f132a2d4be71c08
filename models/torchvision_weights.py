"""Torchvision's detection weights under our names.

With them and `FCOSConfig.torchvision()`, or its equivalent for another detector, ours detects and
learns what torchvision's does. Two differences are deliberate: strides are the nominal 8, 16, ...
(torchvision divides the padded image's size by the map's, which moves points and anchors if the
size is not a multiple of the coarsest stride), and an FCOS point whose distance is exactly on the
border between two levels belongs to one of them (in torchvision, to none).

A name that fits no pattern of the map is an error.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from models.renaming import Names, rename


def numbered(ours: str, step: int) -> Callable[[re.Match], str]:
    """Our name for layer m[2] of block m[1], with blocks of `step` layers in one sequence."""
    return lambda m: f"{ours}.{step * int(m[1]) + int(m[2])}.{m[3]}"


CONV, NORM = "(weight|bias)", "(weight|bias|running_mean|running_var|num_batches_tracked)"

BACKBONE_NAMES = ((r"backbone\.body\.(.+)", r"backbone.\1"),)
# Torchvision's FPN had no ".0" after the index before version 0.14.
FPN_NAMES = (
    (rf"backbone\.fpn\.inner_blocks\.(\d+)(?:\.0)?\.{CONV}", r"neck.lateral.\1.\2"),
    (rf"backbone\.fpn\.layer_blocks\.(\d+)(?:\.0)?\.{CONV}", r"neck.output.\1.\2"),
    (rf"backbone\.fpn\.extra_blocks\.(p6|p7)\.{CONV}", r"neck.\1.\2"),
)
FPN_NORM_NAMES = (
    (r"backbone\.fpn\.inner_blocks\.(\d+)\.0\.weight", r"neck.lateral.\1.0.weight"),
    (rf"backbone\.fpn\.inner_blocks\.(\d+)\.1\.{NORM}", r"neck.lateral.\1.1.\2"),
    (r"backbone\.fpn\.layer_blocks\.(\d+)\.0\.weight", r"neck.output.\1.0.weight"),
    (rf"backbone\.fpn\.layer_blocks\.(\d+)\.1\.{NORM}", r"neck.output.\1.1.\2"),
)
DENSE_OUTPUT_NAMES = (
    (rf"head\.classification_head\.cls_logits\.{CONV}", r"head.cls_logits.\1"),
    (rf"head\.regression_head\.bbox_reg\.{CONV}", r"head.box_regression.\1"),
)
DENSE_TOWER_NAMES = (
    (rf"head\.classification_head\.conv\.(\d+)\.{CONV}", r"head.cls_tower.\1.\2"),
    (rf"head\.regression_head\.conv\.(\d+)\.{CONV}", r"head.box_tower.\1.\2"),
)
FCOS_NAMES = (
    *BACKBONE_NAMES,
    *FPN_NAMES,
    *DENSE_OUTPUT_NAMES,
    *DENSE_TOWER_NAMES,
    (rf"head\.regression_head\.bbox_ctrness\.{CONV}", r"head.centerness.\1"),
)
RETINANET_NAMES = (
    *BACKBONE_NAMES,
    *FPN_NAMES,
    *DENSE_OUTPUT_NAMES,
    (rf"head\.classification_head\.conv\.(\d)\.(0)\.{CONV}", numbered("head.cls_tower", 2)),
    (rf"head\.regression_head\.conv\.(\d)\.(0)\.{CONV}", numbered("head.box_tower", 2)),
    *DENSE_TOWER_NAMES,  # before version 0.14
)
RETINANET_V2_NAMES = (
    *BACKBONE_NAMES,
    *FPN_NAMES,
    *DENSE_OUTPUT_NAMES,
    (r"head\.classification_head\.conv\.(\d)\.(0)\.(weight)", numbered("head.cls_tower", 3)),
    (rf"head\.classification_head\.conv\.(\d)\.(1)\.{CONV}", numbered("head.cls_tower", 3)),
    (r"head\.regression_head\.conv\.(\d)\.(0)\.(weight)", numbered("head.box_tower", 3)),
    (rf"head\.regression_head\.conv\.(\d)\.(1)\.{CONV}", numbered("head.box_tower", 3)),
)
TWO_STAGE_NAMES = (
    *BACKBONE_NAMES,
    (rf"rpn\.head\.conv\.(\d)\.(0)\.{CONV}", numbered("rpn.tower", 2)),
    (rf"rpn\.head\.cls_logits\.{CONV}", r"rpn.objectness.\1"),
    (rf"rpn\.head\.bbox_pred\.{CONV}", r"rpn.box_regression.\1"),
    (rf"roi_heads\.box_predictor\.cls_score\.{CONV}", r"roi_head.classifier.\1"),
    (rf"roi_heads\.box_predictor\.bbox_pred\.{CONV}", r"roi_head.box_regression.\1"),
)
FASTER_RCNN_NAMES = (
    *TWO_STAGE_NAMES,
    *FPN_NAMES,
    (rf"rpn\.head\.conv\.{CONV}", r"rpn.tower.0.\1"),  # before version 0.14
    (rf"roi_heads\.box_head\.fc6\.{CONV}", r"roi_head.fcs.0.\1"),
    (rf"roi_heads\.box_head\.fc7\.{CONV}", r"roi_head.fcs.2.\1"),
)
FASTER_RCNN_V2_NAMES = (
    *TWO_STAGE_NAMES,
    *FPN_NORM_NAMES,
    (r"roi_heads\.box_head\.([0-3])\.(0)\.(weight)", numbered("roi_head.convs", 3)),
    (rf"roi_heads\.box_head\.([0-3])\.(1)\.{NORM}", numbered("roi_head.convs", 3)),
    (rf"roi_heads\.box_head\.5\.{CONV}", r"roi_head.fcs.0.\1"),
)
MASK_OUTPUT_NAMES = (
    (rf"roi_heads\.mask_predictor\.conv5_mask\.{CONV}", r"mask_head.upsample.\1"),
    (rf"roi_heads\.mask_predictor\.mask_fcn_logits\.{CONV}", r"mask_head.predictor.\1"),
)
MASK_RCNN_NAMES = (
    *FASTER_RCNN_NAMES,
    *MASK_OUTPUT_NAMES,
    (rf"roi_heads\.mask_head\.([0-3])\.(0)\.{CONV}", numbered("mask_head.convs", 2)),
    # Before version 0.14, counted from 1.
    (
        rf"roi_heads\.mask_head\.mask_fcn([1-4])\.{CONV}",
        lambda m: f"mask_head.convs.{2 * (int(m[1]) - 1)}.{m[2]}",
    ),
)
MASK_RCNN_V2_NAMES = (
    *FASTER_RCNN_V2_NAMES,
    *MASK_OUTPUT_NAMES,
    (r"roi_heads\.mask_head\.([0-3])\.(0)\.(weight)", numbered("mask_head.convs", 3)),
    (rf"roi_heads\.mask_head\.([0-3])\.(1)\.{NORM}", numbered("mask_head.convs", 3)),
)


def fcos_from_torchvision(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state_dict of our `FCOS` from that of `fcos_resnet50_fpn`; tensors are not copied.

    `model.load_state_dict(result)` accepts it, even if it was saved from torchvision's frozen
    BatchNorm, which has no step counter.

    Raises:
        ValueError: naming the first key that has no counterpart.
    """
    return rename_all(state_dict, FCOS_NAMES, "fcos_resnet50_fpn")


def retinanet_from_torchvision(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same for our `RetinaNet` and `retinanet_resnet50_fpn`."""
    return rename_all(state_dict, RETINANET_NAMES, "retinanet_resnet50_fpn")


def retinanet_v2_from_torchvision(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same for our `RetinaNet` and `retinanet_resnet50_fpn_v2`."""
    return rename_all(state_dict, RETINANET_V2_NAMES, "retinanet_resnet50_fpn_v2")


def faster_rcnn_from_torchvision(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same for our `FasterRCNN` and `fasterrcnn_resnet50_fpn`.

    Torchvision's class 0 is the background, ours is the last; its background box, which is never
    used, is dropped. So our K is its `num_classes` - 1, and our labels are its labels - 1.
    """
    names = rename_all(state_dict, FASTER_RCNN_NAMES, "fasterrcnn_resnet50_fpn")
    return background_last(names)


def faster_rcnn_v2_from_torchvision(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same for our `FasterRCNN` and `fasterrcnn_resnet50_fpn_v2`; background as above."""
    names = rename_all(state_dict, FASTER_RCNN_V2_NAMES, "fasterrcnn_resnet50_fpn_v2")
    return background_last(names)


def mask_rcnn_from_torchvision(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same for our `MaskRCNN` and `maskrcnn_resnet50_fpn`; background as above, masks too."""
    names = rename_all(state_dict, MASK_RCNN_NAMES, "maskrcnn_resnet50_fpn")
    return background_last(names)


def mask_rcnn_v2_from_torchvision(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same for our `MaskRCNN` and `maskrcnn_resnet50_fpn_v2`; background as above."""
    names = rename_all(state_dict, MASK_RCNN_V2_NAMES, "maskrcnn_resnet50_fpn_v2")
    return background_last(names)


def background_last(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Turn outputs for (background, 0, ..., K-1) into classes (0, ..., K-1, background), and boxes
    and masks (0, ..., K-1)."""
    result = dict(state_dict)
    for part in ("weight", "bias"):
        classes, boxes = f"roi_head.classifier.{part}", f"roi_head.box_regression.{part}"
        masks = f"mask_head.predictor.{part}"
        if classes in result:
            result[classes] = torch.roll(result[classes], -1, dims=0)
        if boxes in result:
            result[boxes] = result[boxes][4:]
        if masks in result:
            result[masks] = result[masks][1:]
    return result


def rename_all(state_dict: Mapping[str, Tensor], names: Names, source: str) -> dict[str, Tensor]:
    """`state_dict` with each key rewritten by the first pattern of `names` that matches all of it.

    Raises:
        ValueError: naming the first key that no pattern matches, and `source`, the expected model.
    """
    result = {}
    for key, tensor in state_dict.items():
        ours = rename(key, names)
        if ours is None:
            raise ValueError(
                f"{key} has no counterpart in our detector; "
                f"give the state_dict of torchvision's {source}"
            )
        result[ours] = tensor
    return result
