"""Faster R-CNN: a region proposal network, and a head that looks at each proposal again.

Ren et al., NIPS 2015, on a feature pyramid (Lin et al., CVPR 2017). The two stages are in
`models/rpn.py` and `models/roi_head.py`; this module combines them.

Legend: N images, M ground-truth boxes, R RoIs, K foreground classes, C channels, D detections.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from models.backbone_base import StagedBackbone
from models.checks import require_choice
from models.fpn import FPN, FPNConfig
from models.roi_head import RoIHead, RoIHeadConfig
from models.rpn import RPN, RPNConfig, RPNOutput
from models.targets import check_targets
from models.tower import NORMS

# Settings that both of torchvision's models share.
TORCHVISION = {
    "rpn_anchor_whole_pixels": True,
    "rpn_box_loss": "smooth_l1",
    "proposals_train": 2000,
    "class_agnostic": False,
    "roi_aligned": False,
    "box_loss": "smooth_l1",
    "min_size": 0.01,
}


@dataclass(frozen=True)
class FasterRCNNConfig(RPNConfig, RoIHeadConfig):
    """Settings of the pyramid and of both stages; `model.options` of a run."""

    fpn_norm: str = "none"  # after the pyramid's convolutions: "none", "gn" or "bn"
    topk_train: int = 2000  # anchors per level before non-maximum suppression, in training
    topk_test: int = 1000  # and in detection
    proposals_train: int = 1000  # proposals per image in training
    proposals_test: int = 1000  # and in detection

    NETWORK: ClassVar[tuple[str, ...]] = ("fpn_norm", *RPNConfig.NETWORK, *RoIHeadConfig.NETWORK)

    def __post_init__(self) -> None:
        RPNConfig.__post_init__(self)
        RoIHeadConfig.__post_init__(self)
        require_choice("model.options.fpn_norm", self.fpn_norm, NORMS)

    @classmethod
    def torchvision(cls) -> FasterRCNNConfig:
        """The settings with which this detector equals torchvision's `fasterrcnn_resnet50_fpn`."""
        return cls(box_head="2fc", box_norm="none", **TORCHVISION)

    @classmethod
    def torchvision_v2(cls) -> FasterRCNNConfig:
        """The settings with which it equals torchvision's `fasterrcnn_resnet50_fpn_v2`."""
        return cls(rpn_convs=2, box_norm="bn", fpn_norm="bn", **TORCHVISION)


class FasterRCNN(nn.Module):
    """Backbone, pyramid P2 to P6, proposals and box head, with their losses and detections."""

    def __init__(
        self, backbone: StagedBackbone, config: FasterRCNNConfig, num_classes: int
    ) -> None:
        super().__init__()
        self.config = config
        self.num_classes = num_classes
        self.backbone = backbone
        # P6 is only for proposals: no RoI is pooled from it.
        self.neck = FPN(backbone.channels, FPNConfig(config.channels, "pool", config.fpn_norm))
        self.strides = tuple(
            backbone.strides[0] * 2**level for level in range(self.neck.num_levels)
        )
        self.rpn = RPN(config, self.strides)
        self.roi_head = RoIHead(config, num_classes, self.strides[:-1])

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
            {"loss_rpn_objectness", "loss_rpn_box", "loss_class", "loss_box"}, float32 scalars, or
            one dict per image: boxes (D, 4) xyxy inside the true image, scores (D,) descending,
            labels (D,).
        """
        features, proposed = self.predictions(images)
        if targets is not None:
            check_targets(targets, images, image_sizes, self.num_classes)
            return self.losses(features, proposed, image_sizes, targets)
        return self.detections(features, proposed, image_sizes)

    def predictions(self, images: Tensor) -> tuple[list[Tensor], RPNOutput]:
        """The pyramid's maps and what the RPN makes of them: all layers but those of the RoIs."""
        features = self.pyramid(images)
        return features, self.rpn(features)

    def pyramid(self, images: Tensor) -> list[Tensor]:
        """P2 to P6, a list of (N, C, H_i, W_i); RoIs are pooled from all but the last."""
        return self.neck(self.backbone(images))

    def losses(
        self,
        features: Sequence[Tensor],
        proposed: RPNOutput,
        image_sizes: Tensor | Sequence[tuple[int, int]],
        targets: Sequence[dict[str, Tensor]],
    ) -> dict[str, Tensor]:
        """Both stages' losses against labelled boxes; the second learns from the first's boxes."""
        return self.box_losses(features, proposed, image_sizes, targets)[0]

    def box_losses(
        self,
        features: Sequence[Tensor],
        proposed: RPNOutput,
        image_sizes: Tensor | Sequence[tuple[int, int]],
        targets: Sequence[dict[str, Tensor]],
    ) -> tuple[dict[str, Tensor], list[Tensor], list[Tensor]]:
        """The losses, and for each image the RoIs (R, 4) of the second stage and the boxes (R,)
        they are matched with, on which a mask head goes on."""
        c = self.config
        boxes = [target["boxes"].float() for target in targets]
        losses = self.rpn.losses(proposed, boxes)
        proposals = self.rpn.propose(proposed, image_sizes, c.topk_train, c.proposals_train)
        rois = add_boxes(proposals, boxes)
        rois, matched = self.roi_head.sample(rois, self.roi_head.assign(rois, boxes))
        output = self.roi_head(features[:-1], rois)
        return losses | self.roi_head.losses(output, rois, matched, targets), rois, matched

    def detections(
        self,
        features: Sequence[Tensor],
        proposed: RPNOutput,
        image_sizes: Tensor | Sequence[tuple[int, int]],
    ) -> list[dict[str, Tensor]]:
        """One dict of boxes, scores and labels per image, see `forward`."""
        c = self.config
        rois = self.rpn.propose(proposed, image_sizes, c.topk_test, c.proposals_test)
        output = self.roi_head(features[:-1], rois)
        return self.roi_head.detections(output, rois, image_sizes)


def add_boxes(proposals: Sequence[Tensor], boxes: Sequence[Tensor]) -> list[Tensor]:
    """Append the boxes (M, 4) of each image to its proposals (R, 4), (R + M, 4): early in training
    no proposal overlaps a box, but the box itself is a perfect proposal."""
    return [torch.cat(pair) for pair in zip(proposals, boxes, strict=True)]
