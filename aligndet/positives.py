"""How many positives each box gets: the points or anchors that the detector's own assigner matches
with it. A box that gets none is not learned from.

Legend: A points or anchors, M boxes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from models.assign import BACKGROUND
from models.detector import ModelConfig, build_detector

DIVISOR = 32  # images are padded to a multiple of it, see data.views.pad_images


def detector_without_weights(config: ModelConfig, num_classes: int) -> nn.Module:
    """The detector of a config, for its anchors and assigners only: its weights take no memory.

    Raises:
        ValueError: see `build_detector`.
    """
    with torch.device("meta"):
        return build_detector(replace(config, backbone_weights=None), num_classes)


def positives_per_box(
    detector: nn.Module, name: str, height: int, width: int, boxes: Tensor
) -> Tensor:
    """The number of positives of each box of one image.

    Args:
        detector: from `detector_without_weights`.
        name: `model.detector`, a key of `ASSIGNERS`.
        height, width: of the image as the network sees it, before padding.
        boxes: (M, 4) xyxy, in its pixels.

    Returns:
        (M,) int64.
    """
    maps = empty_maps(detector.strides, height, width)
    matched = ASSIGNERS[name](detector, maps, boxes)  # (A,)
    return torch.bincount(matched[matched >= 0], minlength=len(boxes))


def empty_maps(strides: Sequence[int], height: int, width: int) -> list[Tensor]:
    """Feature maps (1, 0, H_i, W_i) of the right sizes for a padded image, without channels."""
    rows, columns = (-(-side // DIVISOR) * DIVISOR for side in (height, width))
    # Layers of stride 2 halve a map and round up.
    return [torch.empty(1, 0, -(-rows // s), -(-columns // s)) for s in strides]


def _points(detector: nn.Module, maps: Sequence[Tensor], boxes: Tensor) -> Tensor:
    points, strides = detector.points_for(maps)
    return detector.assign(points, strides, [boxes])[0]


def _anchors(detector: nn.Module, maps: Sequence[Tensor], boxes: Tensor) -> Tensor:
    return detector.assign(detector.anchors_for(maps), [boxes])[0]


def _rpn_anchors(detector: nn.Module, maps: Sequence[Tensor], boxes: Tensor) -> Tensor:
    return detector.rpn.assign(detector.rpn.anchors_for(maps), [boxes])[0]


def _queries(detector: nn.Module, maps: Sequence[Tensor], boxes: Tensor) -> Tensor:
    """Each box has one query, as long as there are any; which one, depends on the weights."""
    queries = torch.arange(detector.config.queries)
    return torch.where(queries < len(boxes), queries, BACKGROUND)


# What predicts boxes of its own, by detector. In the second stage of Faster and Mask R-CNN every
# box has a positive, as it is one of the regions itself.
ASSIGNERS: dict[str, Callable[[nn.Module, Sequence[Tensor], Tensor], Tensor]] = {
    "fcos": _points,
    "retinanet": _anchors,
    "faster_rcnn": _rpn_anchors,
    "mask_rcnn": _rpn_anchors,
    "detr": _queries,
}
UNITS = {
    "fcos": "points",
    "retinanet": "anchors",
    "faster_rcnn": "anchors of the RPN",
    "mask_rcnn": "anchors of the RPN",
    "detr": "queries",
}
