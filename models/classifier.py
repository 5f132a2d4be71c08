"""An image classifier: a backbone, the mean over its last map, and a linear layer.

Legend: N images, C channels of the last map, K classes.
"""

from __future__ import annotations

from torch import Tensor, nn

from models.backbone_base import StagedBackbone


def pooled_features(backbone: StagedBackbone, images: Tensor) -> Tensor:
    """(N, 3, H, W) to (N, C): the mean over C5."""
    return backbone(images)[-1].mean(dim=(2, 3))


class Classifier(nn.Module):
    """Backbone and linear layer; with the same weights, the logits equal torchvision's.

    Args:
        backbone: from `models.backbone.build_backbone`.
        num_classes: K.
    """

    def __init__(self, backbone: StagedBackbone, num_classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        backbone.skip_maps(3)
        self.linear = nn.Linear(backbone.channels[-1], num_classes)
        nn.init.normal_(self.linear.weight, std=0.01)
        nn.init.zeros_(self.linear.bias)

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) to logits (N, K)."""
        return self.linear(pooled_features(self.backbone, images))

    def torchvision_state_dict(self) -> dict[str, Tensor]:
        """Weights under the names that torchvision gives the whole classifier."""
        layer = self.backbone.classifier_name
        linear = {f"{layer}.{name}": value for name, value in self.linear.state_dict().items()}
        return {**self.backbone.state_dict(), **linear}
