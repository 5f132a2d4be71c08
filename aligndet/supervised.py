"""Supervised image-domain pre-training: the backbone learns to classify images.

Legend: N images, K classes.
"""

from __future__ import annotations

import math
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from aligndet import dist
from models.backbone_base import StagedBackbone
from models.classifier import Classifier


class Supervised(nn.Module):
    """The task of `train.fit`: classify images.

    Args:
        backbone: all of it is trained, in place.
        num_classes: K.
        label_smoothing: the fraction of the target that is spread over all classes, 0..1.
    """

    def __init__(self, backbone: StagedBackbone, num_classes: int, label_smoothing: float) -> None:
        super().__init__()
        self.classifier = Classifier(backbone, num_classes)
        self.label_smoothing = label_smoothing

    @property
    def backbone(self) -> StagedBackbone:
        """The part that the next stage starts from."""
        return self.classifier.backbone

    @property
    def num_classes(self) -> int:
        """K."""
        return self.linear.out_features

    @property
    def loss_at_chance(self) -> float:
        """The loss if all classes are equally likely."""
        return math.log(self.num_classes)

    def forward(
        self, batch: dict[str, Any], with_statistics: bool = True
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Loss and, with statistics, accuracy on a batch from `collate_image_views`."""
        logits, labels = self.classifier(batch["views"][0]).float(), batch["labels"]  # (N, K), (N,)
        loss = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        if not with_statistics:
            return {"loss_class": loss}, {}
        accuracy = (logits.argmax(dim=1) == labels).float().mean()
        return {"loss_class": loss}, {"accuracy": accuracy}

    def update_target(self, step: int, total_steps: int) -> dict[str, float]:
        """Average BatchNorm statistics over ranks; there is no target to move."""
        dist.average_statistics(self)
        return {}

    @property
    def linear(self) -> nn.Linear:
        """The classification layer, trained together with the backbone."""
        return self.classifier.linear

    def notes(self, num_images: int) -> list[str]:
        """What to know before training on this many images: nothing."""
        return []

    def weights(self) -> dict[str, Tensor]:
        """Backbone and linear layer under torchvision's names."""
        return self.classifier.torchvision_state_dict()
