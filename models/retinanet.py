"""RetinaNet: a dense detector with anchors (Lin et al., "Focal loss for dense object detection",
ICCV 2017, section 4).

Legend: N images, A anchors of all levels, M ground-truth boxes, K foreground classes,
B anchors per cell, C channels, P positive anchors of the batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from losses.focal import one_hot, sigmoid_focal_loss
from losses.normalizer import mean_over_ranks
from models.anchors import ANCHOR_RATIOS, cell_anchors, flatten_predictions, grid_anchors
from models.assign import IGNORE, assign_by_iou, find_positives, look_up, require_thresholds
from models.backbone_base import StagedBackbone
from models.box_loss import BOX_LOSSES, box_loss
from models.checks import require_choice, require_range
from models.coders import deltas_to_boxes
from models.fpn import FPN, FPNConfig
from models.postprocess import suppress_duplicates, top_candidates
from models.targets import check_targets
from models.tower import conv_tower


@dataclass(frozen=True)
class RetinaNetConfig:
    """Settings of the pyramid, head, losses and detections; `model.options` of a run."""

    channels: int = 256  # of the pyramid and of the head
    fpn_extra: str = "p6p7_from_c5"  # levels above P5, see FPNConfig
    num_convs: int = 4  # convolutions in each of the two towers
    tower_norm: str = "none"  # or "gn"
    prior: float = 0.01  # score of every class at initialisation (section 3.3)
    anchor_size: float = 4.0  # square root of the smallest area, in strides: 32 px at stride 8
    anchor_scales: int = 3  # sizes per octave: 2^0, 2^(1/3) and 2^(2/3) of the smallest
    anchor_offset: float = 0.0  # position in the cell, in strides: 0.5 is its centre
    anchor_whole_pixels: bool = False  # round anchors as torchvision does
    foreground_iou: float = 0.5  # an anchor with at least this IoU is positive
    background_iou: float = 0.4  # below this, it is negative; between the two it is ignored
    low_quality_matches: bool = True  # the best anchor of a box is positive whatever its IoU
    focal_alpha: float = 0.25  # weight of positives against negatives
    focal_gamma: float = 2.0  # how strongly easy examples are down-weighted
    box_loss: str = "l1"  # or "smooth_l1", "giou", "iou"
    smooth_l1_beta: float = 1 / 9  # deltas below it cost quadratically
    score_threshold: float = 0.05  # detections score more than this
    topk_candidates: int = 1000  # per level, before non-maximum suppression
    nms_iou: float = 0.5  # overlap at which the weaker of two boxes of a class is dropped
    detections_per_image: int = 100  # the best ones, after non-maximum suppression
    min_size: float = 1.0  # px; drops the slivers predicted outside the true image

    # Which weights there are and what their outputs mean; the others may change between trainings.
    NETWORK: ClassVar[tuple[str, ...]] = (
        *("channels", "fpn_extra", "num_convs", "tower_norm", "anchor_size", "anchor_scales"),
        *("anchor_offset", "anchor_whole_pixels"),
    )

    def __post_init__(self) -> None:
        require_choice("model.options.box_loss", self.box_loss, BOX_LOSSES)
        # BatchNorm would mix the statistics of the levels, as they share the towers.
        require_choice("model.options.tower_norm", self.tower_norm, ("none", "gn"))
        require_range("model.options.prior", self.prior, above=0, below=1)
        require_thresholds("model.options.", self.foreground_iou, self.background_iou)

    @classmethod
    def torchvision(cls) -> RetinaNetConfig:
        """The settings with which this detector equals torchvision's `retinanet_resnet50_fpn`."""
        return cls(
            fpn_extra="p6p7_from_p5",
            anchor_whole_pixels=True,
            detections_per_image=300,
            min_size=0.0,
        )

    @classmethod
    def torchvision_v2(cls) -> RetinaNetConfig:
        """The settings with which it equals torchvision's `retinanet_resnet50_fpn_v2`."""
        return cls(
            tower_norm="gn",
            anchor_whole_pixels=True,
            box_loss="giou",
            detections_per_image=300,
            min_size=0.0,
        )


class RetinaNetOutput(NamedTuple):
    """Raw predictions; A runs as in `grid_anchors`."""

    logits: Tensor  # (N, A, K)
    deltas: Tensor  # (N, A, 4) from anchor to box, see `boxes_to_deltas`, float32


class RetinaNetHead(nn.Module):
    """Two towers shared by all levels, one for the class and one for the box.

    `cls_logits` is the class output, `box_regression` the box output. The parts can be called
    separately.
    """

    def __init__(self, config: RetinaNetConfig, num_classes: int) -> None:
        super().__init__()
        channels = config.channels
        self.num_anchors = len(ANCHOR_RATIOS) * config.anchor_scales  # B
        self.cls_tower = conv_tower(channels, config.num_convs, config.tower_norm)
        self.box_tower = conv_tower(channels, config.num_convs, config.tower_norm)
        self.cls_logits = nn.Conv2d(channels, self.num_anchors * num_classes, 3, padding=1)
        self.box_regression = nn.Conv2d(channels, self.num_anchors * 4, 3, padding=1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.constant_(self.cls_logits.bias, math.log(config.prior / (1 - config.prior)))

    def forward(self, features: Sequence[Tensor]) -> RetinaNetOutput:
        """Pyramid maps, a list of (N, C, H_i, W_i), to predictions."""
        cls_features, box_features = self.towers(features)
        return RetinaNetOutput(self.logits_from(cls_features), self.deltas_from(box_features))

    def towers(self, features: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Class features and box features, both lists of (N, C, H_i, W_i)."""
        return [self.cls_tower(x) for x in features], [self.box_tower(x) for x in features]

    def logits_from(self, cls_features: Sequence[Tensor]) -> Tensor:
        """Class logits (N, A, K)."""
        return flatten_predictions([self.cls_logits(x) for x in cls_features], self.num_anchors)

    def deltas_from(self, box_features: Sequence[Tensor]) -> Tensor:
        """Deltas (N, A, 4), float32."""
        maps = [self.box_regression(x).float() for x in box_features]
        return flatten_predictions(maps, self.num_anchors)


class RetinaNet(nn.Module):
    """Backbone, pyramid P3 to P7 and head, with their losses and detections."""

    def __init__(self, backbone: StagedBackbone, config: RetinaNetConfig, num_classes: int) -> None:
        super().__init__()
        self.config = config
        self.num_classes = num_classes
        self.backbone = backbone
        backbone.skip_maps(1)
        self.neck = FPN(backbone.channels[1:], FPNConfig(config.channels, config.fpn_extra))
        self.strides = tuple(
            backbone.strides[1] * 2**level for level in range(self.neck.num_levels)
        )
        self.head = RetinaNetHead(config, num_classes)
        self.cells = self.cells_of_levels()

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
            {"loss_class", "loss_box"}, float32 scalars, or one dict per image: boxes (D, 4)
            xyxy inside the true image, scores (D,) descending, labels (D,).
        """
        features, output = self.predictions(images)
        anchors = self.anchors_for(features)
        if targets is not None:
            check_targets(targets, images, image_sizes, self.num_classes)
            return self.losses(output, anchors, targets)
        per_cell = self.head.num_anchors
        level_sizes = [x.shape[2] * x.shape[3] * per_cell for x in features]
        return self.detections(output, anchors, level_sizes, image_sizes)

    def predictions(self, images: Tensor) -> tuple[list[Tensor], RetinaNetOutput]:
        """The pyramid's maps and what the head makes of them: all layers of the detector."""
        features = self.pyramid(images)
        return features, self.head(features)

    def pyramid(self, images: Tensor) -> list[Tensor]:
        """The maps the head works on, a list of (N, C, H_i, W_i); C2 is not used."""
        return self.neck(self.backbone(images)[1:])

    def anchors_for(self, features: Sequence[Tensor]) -> Tensor:
        """Anchors (A, 4) xyxy in pixels, in the order of the predictions; the same for all N."""
        feature_sizes = [tuple(x.shape[-2:]) for x in features]
        cells = self.cells.to(features[0].device, non_blocking=True)
        return grid_anchors(feature_sizes, self.strides, cells, self.config.anchor_offset)

    def cells_of_levels(self) -> Tensor:
        """The anchors of a cell of each level, (levels, B, 4), on the host."""
        c, cells = self.config, []
        for stride in self.strides:
            smallest = c.anchor_size * stride
            sizes = [smallest * 2 ** (step / c.anchor_scales) for step in range(c.anchor_scales)]
            cells.append(cell_anchors(sizes, ANCHOR_RATIOS, c.anchor_whole_pixels, "cpu"))
        return torch.stack(cells)

    def assign(self, anchors: Tensor, boxes: Sequence[Tensor]) -> Tensor:
        """Match anchors with each image's boxes (M, 4): (N, A) index of the box, or BACKGROUND
        or IGNORE."""
        c = self.config
        thresholds = (c.foreground_iou, c.background_iou, c.low_quality_matches)
        return torch.stack([assign_by_iou(anchors, b, *thresholds) for b in boxes])

    def losses(
        self, output: RetinaNetOutput, anchors: Tensor, targets: Sequence[dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """Both losses against labelled boxes."""
        boxes = [target["boxes"] for target in targets]
        matched = self.assign(anchors, boxes)  # (N, A)
        loss_class = self.class_loss(output.logits, matched, [t["labels"] for t in targets])
        return {"loss_class": loss_class, **self.box_losses(output.deltas, anchors, matched, boxes)}

    def class_loss(self, logits: Tensor, matched: Tensor, labels: Sequence[Tensor]) -> Tensor:
        """Focal loss over the anchors that are not ignored, divided by the number of positives.

        Args:
            logits: (N, A, K).
            matched: (N, A) from `assign`.
            labels: for each image, (M,) in 0..K-1.
        """
        counted = (matched != IGNORE).flatten().nonzero().squeeze(1)  # anchors of all images
        logits = logits.flatten(0, 1).index_select(0, counted)
        classes = torch.cat(look_up(labels, matched))[counted]  # label or BACKGROUND
        alpha, gamma = self.config.focal_alpha, self.config.focal_gamma
        positives = mean_over_ranks((matched >= 0).sum())
        targets = one_hot(classes, self.num_classes)
        return sigmoid_focal_loss(logits, targets, alpha, gamma, positives)

    def box_losses(
        self, deltas: Tensor, anchors: Tensor, matched: Tensor, boxes: Sequence[Tensor]
    ) -> dict[str, Tensor]:
        """Box regression loss of the positive anchors; needs no labels.

        Args:
            deltas: (N, A, 4) from the head.
            anchors: (A, 4).
            matched: (N, A) from `assign`.
            boxes: for each image, (M, 4) xyxy: ground truth or proposals.

        Returns:
            {"loss_box"}, a zero attached to the graph if nothing is positive.
        """
        index, box = find_positives(matched, boxes)  # (P,), (P,)
        loss = box_loss(
            self.config.box_loss,
            deltas.flatten(0, 1)[index],  # (P, 4)
            anchors[index % len(anchors)],
            torch.cat(list(boxes))[box],
            mean_over_ranks((matched >= 0).sum()),
            self.config.smooth_l1_beta,
        )
        return {"loss_box": loss}

    def detections(
        self,
        output: RetinaNetOutput,
        anchors: Tensor,
        level_sizes: Sequence[int],
        image_sizes: Tensor | Sequence[tuple[int, int]],
    ) -> list[dict[str, Tensor]]:
        """Turn predictions into one dict of boxes, scores and labels per image, see `forward`."""
        c = self.config
        results = []
        for n, size in enumerate(torch.as_tensor(image_sizes).tolist()):
            scores = output.logits[n].float().sigmoid()  # (A, K)
            scores, index, labels = top_candidates(
                scores, level_sizes, c.score_threshold, c.topk_candidates
            )
            boxes = deltas_to_boxes(anchors[index], output.deltas[n, index])
            found = suppress_duplicates(
                boxes, scores, labels, size, c.nms_iou, c.detections_per_image, c.min_size
            )
            results.append(found)
        return results
