"""Mask R-CNN: Faster R-CNN that also says which pixels of a box belong to the object.

He et al., ICCV 2017, on a feature pyramid. To the parts of `models/faster_rcnn.py` it adds a mask
head (`models/mask_head.py`), which sees the positive RoIs in training and the final boxes in
detection.

Legend: N images, M ground-truth boxes, R RoIs, K foreground classes, C channels, D detections,
S side of a predicted mask in cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from models.backbone_base import StagedBackbone
from models.faster_rcnn import TORCHVISION, FasterRCNNConfig, add_boxes, build_pyramid
from models.mask_head import MaskHead, MaskHeadConfig
from models.roi_head import RoIHead
from models.rpn import RPN, RPNOutput
from models.targets import check_masks, check_targets


@dataclass(frozen=True)
class MaskRCNNConfig(FasterRCNNConfig, MaskHeadConfig):
    """Settings of the pyramid, of both stages and of the mask head; `model.options` of a run."""

    NETWORK: ClassVar[tuple[str, ...]] = tuple(
        dict.fromkeys((*FasterRCNNConfig.NETWORK, *MaskHeadConfig.NETWORK))  # some are of both
    )

    def __post_init__(self) -> None:
        FasterRCNNConfig.__post_init__(self)
        MaskHeadConfig.__post_init__(self)

    @classmethod
    def torchvision(cls) -> MaskRCNNConfig:
        """The settings with which this detector equals torchvision's `maskrcnn_resnet50_fpn`."""
        masks = {"mask_norm": "none", "mask_class_agnostic": False}
        return cls(box_head="2fc", box_norm="none", **masks, **TORCHVISION)

    @classmethod
    def torchvision_v2(cls) -> MaskRCNNConfig:
        """The settings with which it equals torchvision's `maskrcnn_resnet50_fpn_v2`."""
        masks = {"mask_norm": "bn", "mask_class_agnostic": False}
        return cls(rpn_convs=2, box_norm="bn", fpn_norm="bn", **masks, **TORCHVISION)


class MaskRCNN(nn.Module):
    """Backbone, pyramid P2 to P6, proposals, box head and mask head, with their losses and
    detections."""

    def __init__(self, backbone: StagedBackbone, config: MaskRCNNConfig, num_classes: int) -> None:
        super().__init__()
        self.config = config
        self.num_classes = num_classes
        self.backbone = backbone
        self.neck, self.strides = build_pyramid(backbone, config)
        self.rpn = RPN(config, self.strides)
        self.roi_head = RoIHead(config, num_classes, self.strides[:-1])
        self.mask_head = MaskHead(config, num_classes, self.strides[:-1])

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
            targets: one dict per image: boxes (M, 4) xyxy in pixels, labels (M,) int64 in 0..K-1,
                masks (M, height, width) uint8 or bool, 0 or 1, all zeros for a box without a mask;
                M may be 0.

        Returns:
            {"loss_rpn_objectness", "loss_rpn_box", "loss_class", "loss_box", "loss_mask"}, float32
            scalars, or one dict per image: boxes (D, 4) xyxy inside the true image, scores (D,)
            descending, labels (D,), masks (D, S, S) probabilities inside the boxes, float32, which
            `models.mask_head.paste_masks` puts into the image.
        """
        features, proposed = self.predictions(images)
        if targets is not None:
            check_targets(targets, images, image_sizes, self.num_classes)
            check_masks(targets, image_sizes)
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
        """Faster R-CNN's losses, and that of the masks on those of its RoIs that are positive."""
        c = self.config
        boxes = [target["boxes"].float() for target in targets]
        losses = self.rpn.losses(proposed, boxes)
        proposals = self.rpn.propose(proposed, image_sizes, c.topk_train, c.proposals_train)
        rois = add_boxes(proposals, boxes)
        rois, matched = self.roi_head.sample(rois, self.roi_head.assign(rois, boxes))
        output = self.roi_head(features[:-1], rois)
        losses |= self.roi_head.losses(output, rois, matched, targets)
        return losses | self.mask_losses(features, rois, matched, targets)

    def mask_losses(
        self,
        features: Sequence[Tensor],
        rois: Sequence[Tensor],
        matched: Sequence[Tensor],
        targets: Sequence[dict[str, Tensor]],
    ) -> dict[str, Tensor]:
        """{"loss_mask"} of RoIs (R, 4) of each image and the boxes (R,) they are matched with."""
        masks, labels = [t["masks"] for t in targets], [t["labels"] for t in targets]
        rois, matched = self.mask_head.positives(rois, matched, masks)
        logits = self.mask_head(features[:-1], rois)
        return self.mask_head.losses(logits, rois, matched, masks, labels)

    def detections(
        self,
        features: Sequence[Tensor],
        proposed: RPNOutput,
        image_sizes: Tensor | Sequence[tuple[int, int]],
    ) -> list[dict[str, Tensor]]:
        """One dict of boxes, scores, labels and masks per image, see `forward`."""
        c = self.config
        rois = self.rpn.propose(proposed, image_sizes, c.topk_test, c.proposals_test)
        output = self.roi_head(features[:-1], rois)
        found = self.roi_head.detections(output, rois, image_sizes)
        return self.mask_head.detections(features[:-1], found)
