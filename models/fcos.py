"""FCOS: a detector that predicts one box per point of a feature pyramid, without anchors.

Tian et al., "FCOS: a simple and strong anchor-free object detector" (arXiv 2006.09214), which
includes the ICCV 2019 paper (arXiv 1904.01355), whose equation numbers are used below.

Legend: N images, A points of all levels, M ground-truth boxes, K foreground classes,
C channels, P positive points of the batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from losses.focal import one_hot, sigmoid_focal_loss
from losses.iou import box_iou_loss
from losses.normalizer import mean_over_ranks
from models.anchors import flatten_predictions, grid_points
from models.assign import assign_points, find_positives, look_up, reach_bounds
from models.backbone_base import StagedBackbone
from models.checks import require_choice, require_range
from models.coders import boxes_to_distances, centerness_target, distances_to_boxes
from models.fpn import FPN, FPNConfig
from models.postprocess import suppress_duplicates, top_candidates
from models.targets import check_targets
from models.tower import conv_tower

MAX_LOG_DISTANCE = math.log(1e4)  # a side is never farther than 10,000 px: exp must not overflow


@dataclass(frozen=True)
class FCOSConfig:
    """Settings of the pyramid, head, losses and detections; `model.options` of a run."""

    channels: int = 256  # of the pyramid and of the head
    fpn_extra: str = "p6p7_from_p5"  # levels above P5, see FPNConfig
    num_convs: int = 4  # convolutions in each of the two towers
    norm_groups: int = 32  # of GroupNorm, lowered to a divisor of `channels`
    level_scales: bool = True  # a trainable factor for the distances of each level
    norm_on_stride: bool = True  # distances are relu(x) strides (2020), else exp(x) pixels (2019)
    distance_bias: float = 0.0  # initial x; at 0, relu may leave a side without gradient for good
    prior: float = 0.01  # score of every class at initialisation (focal loss, section 3.3)
    point_offset: float = 0.5  # position of a point in its cell, in strides: 0.5 is the centre
    center_radius: float | None = 1.5  # centre sampling, in strides; null takes the whole box
    reach_per_stride: float = 8.0  # a level regresses up to 8 strides: 64 px at stride 8
    focal_alpha: float = 0.25  # weight of positives against negatives
    focal_gamma: float = 2.0  # how strongly easy examples are down-weighted
    box_loss: str = "giou"  # or "iou"
    centerness_weighted: bool = True  # box loss weighted by centerness, divided by its sum
    score_threshold: float = 0.05  # detections score more than this
    topk_candidates: int = 1000  # per level, before non-maximum suppression
    nms_iou: float = 0.6  # overlap at which the weaker of two boxes of a class is dropped
    detections_per_image: int = 100  # the best ones, after non-maximum suppression
    min_size: float = 1.0  # px; drops the slivers predicted outside the true image

    # Which weights there are and what their outputs mean; the others may change between trainings.
    NETWORK: ClassVar[tuple[str, ...]] = (
        *("channels", "fpn_extra", "num_convs", "norm_groups", "level_scales"),
        *("norm_on_stride", "point_offset", "reach_per_stride"),
    )

    def __post_init__(self) -> None:
        require_choice("model.options.box_loss", self.box_loss, ("giou", "iou"))
        require_range("model.options.prior", self.prior, above=0, below=1)
        require_range("model.options.center_radius", self.center_radius, above=0)

    @classmethod
    def torchvision(cls) -> FCOSConfig:
        """The settings with which this detector equals torchvision's `fcos_resnet50_fpn`."""
        return cls(
            level_scales=False,
            point_offset=0.0,
            centerness_weighted=False,
            score_threshold=0.2,
            min_size=0.0,
        )


class FCOSOutput(NamedTuple):
    """Raw predictions; A runs over levels, finest first, then rows, as in `grid_points`."""

    logits: Tensor  # (N, A, K)
    distances: Tensor  # (N, A, 4) left, top, right, bottom, >= 0, in pixels, float32
    centerness: Tensor  # (N, A) logits


class FCOSHead(nn.Module):
    """Two towers shared by all levels: one for the class, one for box and centerness.

    Its parts can be called separately.
    """

    def __init__(self, config: FCOSConfig, num_classes: int, strides: Sequence[int]) -> None:
        super().__init__()
        self.config = config
        self.strides = tuple(strides)
        channels = config.channels
        tower = (channels, config.num_convs, "gn", config.norm_groups)
        self.cls_tower = conv_tower(*tower, bias=True)
        self.box_tower = conv_tower(*tower, bias=True)
        self.cls_logits = nn.Conv2d(channels, num_classes, 3, padding=1)
        self.box_regression = nn.Conv2d(channels, 4, 3, padding=1)
        self.centerness = nn.Conv2d(channels, 1, 3, padding=1)
        self.scales = nn.Parameter(torch.ones(len(self.strides))) if config.level_scales else None
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias)
        nn.init.constant_(self.box_regression.bias, config.distance_bias)
        nn.init.constant_(self.cls_logits.bias, math.log(config.prior / (1 - config.prior)))

    def forward(self, features: Sequence[Tensor]) -> FCOSOutput:
        """Pyramid maps, a list of (N, C, H_i, W_i), to predictions."""
        cls_features, box_features = self.towers(features)
        return FCOSOutput(self.logits_from(cls_features), *self.boxes_from(box_features))

    def towers(self, features: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Class features and box features, both lists of (N, C, H_i, W_i)."""
        return [self.cls_tower(x) for x in features], [self.box_tower(x) for x in features]

    def logits_from(self, cls_features: Sequence[Tensor]) -> Tensor:
        """Class logits (N, A, K)."""
        return flatten_predictions([self.cls_logits(x) for x in cls_features], per_cell=1)

    def boxes_from(self, box_features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Distances (N, A, 4) in pixels, float32, and centerness logits (N, A)."""
        distances = []
        for level, x in enumerate(box_features):
            raw = self.box_regression(x).float()  # exp and pixels need more than half precision
            if self.scales is not None:
                raw = raw * self.scales[level]
            if self.config.norm_on_stride:
                distances.append(raw.relu() * self.strides[level])
            else:
                distances.append(raw.clamp(max=MAX_LOG_DISTANCE).exp())
        centerness = flatten_predictions([self.centerness(x) for x in box_features], per_cell=1)
        return flatten_predictions(distances, per_cell=1), centerness.squeeze(2)


class FCOS(nn.Module):
    """Backbone, pyramid P3 to P7 and head, with their losses and detections."""

    def __init__(self, backbone: StagedBackbone, config: FCOSConfig, num_classes: int) -> None:
        super().__init__()
        self.config = config
        self.num_classes = num_classes
        self.backbone = backbone
        backbone.skip_maps(1)
        self.neck = FPN(backbone.channels[1:], FPNConfig(config.channels, config.fpn_extra))
        self.strides = tuple(
            backbone.strides[1] * 2**level for level in range(self.neck.num_levels)
        )
        self.head = FCOSHead(config, num_classes, self.strides)

    def forward(
        self,
        images: Tensor,
        image_sizes: Tensor | Sequence[tuple[int, int]],
        targets: Sequence[dict[str, Tensor]] | None = None,
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Losses if `targets` are given, detections if not; in train and eval mode alike.

        Args:
            images: (N, 3, H, W), normalised, padded on the right and below.
            image_sizes: (N, 2) true (height, width) before padding, in pixels.
            targets: one dict per image: boxes (M, 4) xyxy in pixels, labels (M,) int64 in 0..K-1;
                M may be 0.

        Returns:
            {"loss_class", "loss_box", "loss_centerness"}, float32 scalars, or one dict per image:
            boxes (D, 4) xyxy inside the true image, scores (D,) descending, labels (D,).
        """
        features, output = self.predictions(images)
        points, strides = self.points_for(features)
        if targets is not None:
            check_targets(targets, images, image_sizes, self.num_classes)
            return self.losses(output, points, strides, targets)
        level_sizes = [x.shape[2] * x.shape[3] for x in features]
        return self.detections(output, points, level_sizes, image_sizes)

    def predictions(self, images: Tensor) -> tuple[list[Tensor], FCOSOutput]:
        """The pyramid's maps and what the head makes of them: all layers of the detector."""
        features = self.pyramid(images)
        return features, self.head(features)

    def pyramid(self, images: Tensor) -> list[Tensor]:
        """The maps the head works on, a list of (N, C, H_i, W_i); C2 is not used."""
        return self.neck(self.backbone(images)[1:])

    def points_for(self, features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Points (A, 2) xy in pixels and their strides (A,), in the order of the predictions."""
        sizes = [tuple(x.shape[-2:]) for x in features]
        return grid_points(sizes, self.strides, self.config.point_offset, features[0].device)

    def assign(self, points: Tensor, strides: Tensor, boxes: Sequence[Tensor]) -> Tensor:
        """Match points with each image's boxes (M, 4): (N, A) index of the box or BACKGROUND."""
        lower, upper = reach_bounds(strides, self.config.reach_per_stride)
        radius = self.config.center_radius
        matched = [assign_points(points, strides, lower, upper, b, radius) for b in boxes]
        return torch.stack(matched)

    def losses(
        self,
        output: FCOSOutput,
        points: Tensor,
        strides: Tensor,
        targets: Sequence[dict[str, Tensor]],
    ) -> dict[str, Tensor]:
        """The three terms of FCOS, equation 2, against labelled boxes."""
        boxes = [target["boxes"] for target in targets]
        matched = self.assign(points, strides, boxes)  # (N, A)
        loss_class = self.class_loss(output.logits, matched, [t["labels"] for t in targets])
        box_terms = self.box_losses(output.distances, output.centerness, points, matched, boxes)
        return {"loss_class": loss_class, **box_terms}

    def class_loss(self, logits: Tensor, matched: Tensor, labels: Sequence[Tensor]) -> Tensor:
        """Focal loss over all points, divided by the number of positives.

        Args:
            logits: (N, A, K).
            matched: (N, A) from `assign`.
            labels: for each image, (M,) in 0..K-1.
        """
        targets = one_hot(torch.stack(look_up(labels, matched)), self.num_classes)  # (N, A, K)
        positives = mean_over_ranks((matched >= 0).sum())
        alpha, gamma = self.config.focal_alpha, self.config.focal_gamma
        return sigmoid_focal_loss(logits, targets, alpha, gamma, positives)

    def box_losses(
        self,
        distances: Tensor,
        centerness: Tensor,
        points: Tensor,
        matched: Tensor,
        boxes: Sequence[Tensor],
    ) -> dict[str, Tensor]:
        """Overlap and centerness losses of the positive points; needs no labels.

        Args:
            distances, centerness: (N, A, 4) in pixels and (N, A) logits, from the head.
            points: (A, 2).
            matched: (N, A) from `assign`.
            boxes: for each image, (M, 4) xyxy: ground truth or proposals.

        Returns:
            {"loss_box", "loss_centerness"}, zeros attached to the graph if nothing is positive.
        """
        index, box = find_positives(matched, boxes)  # (P,), (P,)
        target_boxes = torch.cat(list(boxes))[box].float()  # (P, 4)
        positive_points = points[index % len(points)]  # (P, 2)
        target_centerness = centerness_target(boxes_to_distances(positive_points, target_boxes))
        pred_boxes = distances_to_boxes(positive_points, distances.flatten(0, 1)[index].float())
        positives = mean_over_ranks((matched >= 0).sum())
        weights, normalizer = None, positives
        if self.config.centerness_weighted:
            weights = target_centerness
            normalizer = mean_over_ranks(weights.sum(), minimum=1e-6)
        kind = self.config.box_loss
        loss_centerness = F.binary_cross_entropy_with_logits(
            centerness.flatten()[index].float(), target_centerness, reduction="sum"
        )
        return {
            "loss_box": box_iou_loss(pred_boxes, target_boxes, kind, weights, normalizer),
            "loss_centerness": loss_centerness / positives,
        }

    def detections(
        self,
        output: FCOSOutput,
        points: Tensor,
        level_sizes: Sequence[int],
        image_sizes: Tensor | Sequence[tuple[int, int]],
    ) -> list[dict[str, Tensor]]:
        """Turn predictions into one dict of boxes, scores and labels per image, see `forward`.

        The score is sqrt(class probability * centerness), as in the 2020 paper.
        """
        c = self.config
        results = []
        for n, size in enumerate(torch.as_tensor(image_sizes).tolist()):
            centerness = output.centerness[n, :, None].float().sigmoid()  # (A, 1)
            scores = (output.logits[n].float().sigmoid() * centerness).sqrt()  # (A, K)
            scores, index, labels = top_candidates(
                scores, level_sizes, c.score_threshold, c.topk_candidates
            )
            boxes = distances_to_boxes(points[index], output.distances[n, index])
            found = suppress_duplicates(
                boxes, scores, labels, size, c.nms_iou, c.detections_per_image, c.min_size
            )
            results.append(found)
        return results
