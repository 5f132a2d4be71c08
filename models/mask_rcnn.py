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

from torch import Tensor

from models.backbone_base import StagedBackbone
from models.faster_rcnn import TORCHVISION, FasterRCNN, FasterRCNNConfig
from models.mask_head import MaskHead, MaskHeadConfig
from models.rpn import RPNOutput
from models.targets import check_masks


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


class MaskRCNN(FasterRCNN):
    """Faster R-CNN and a mask head, with their losses and detections.

    `forward` is Faster R-CNN's. Targets have `masks` (M, height, width) too, uint8 or bool, 0 or 1,
    all zeros for a box without a mask; losses have `loss_mask`, and detections `masks` (D, S, S),
    probabilities inside the boxes, float32, which `models.mask_head.paste_masks` puts into the
    image.
    """

    config: MaskRCNNConfig

    def __init__(self, backbone: StagedBackbone, config: MaskRCNNConfig, num_classes: int) -> None:
        super().__init__(backbone, config, num_classes)
        self.mask_head = MaskHead(config, num_classes, self.strides[:-1])

    def losses(
        self,
        features: Sequence[Tensor],
        proposed: RPNOutput,
        image_sizes: Tensor | Sequence[tuple[int, int]],
        targets: Sequence[dict[str, Tensor]],
    ) -> dict[str, Tensor]:
        """Faster R-CNN's losses, and that of the masks on those of its RoIs that are positive."""
        check_masks(targets, image_sizes)
        losses, rois, matched = self.box_losses(features, proposed, image_sizes, targets)
        masks, labels = [t["masks"] for t in targets], [t["labels"] for t in targets]
        rois, matched = self.mask_head.positives(rois, matched, masks)
        logits = self.mask_head(features[:-1], rois)
        return losses | self.mask_head.losses(logits, rois, matched, masks, labels)

    def detections(
        self,
        features: Sequence[Tensor],
        proposed: RPNOutput,
        image_sizes: Tensor | Sequence[tuple[int, int]],
    ) -> list[dict[str, Tensor]]:
        """One dict of boxes, scores, labels and masks per image: masks of the final boxes only."""
        found = super().detections(features, proposed, image_sizes)
        return self.mask_head.detections(features[:-1], found)
