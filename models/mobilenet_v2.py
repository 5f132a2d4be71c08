"""MobileNetV2 without the classifier (Sandler et al., CVPR 2018, table 2).

Parameter names are torchvision's (`features.0.0.weight`, ...), so its weights load unchanged.

Legend: N images, C channels.
"""

from __future__ import annotations

from torch import Tensor, nn

from models.backbone_base import StagedBackbone, init_convolutions
from models.norm import convolve_and_normalise
from models.resnet import Norm

# expansion, output channels, blocks, stride of the first block
SETTINGS = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class ConvNormReLU6(nn.Sequential):
    """Convolution, normalisation and ReLU6 as one block; (N, C, H, W) to (N, C', H/s, W/s)."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, stride: int, groups: int, norm: Norm
    ) -> None:
        conv = nn.Conv2d(
            in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False
        )
        super().__init__(conv, norm(out_channels), nn.ReLU6(inplace=True))

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        conv, norm, relu6 = self
        return relu6(convolve_and_normalise(conv, norm, x))


class InvertedResidual(nn.Module):
    """1x1 expansion, 3x3 depthwise, 1x1 linear projection; a shortcut where shapes allow it."""

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, expansion: int, norm: Norm
    ) -> None:
        super().__init__()
        hidden = in_channels * expansion
        layers = []
        if expansion != 1:
            layers.append(ConvNormReLU6(in_channels, hidden, 1, 1, 1, norm))
        layers.append(ConvNormReLU6(hidden, hidden, 3, stride, hidden, norm))
        layers.append(nn.Conv2d(hidden, out_channels, 1, bias=False))
        layers.append(norm(out_channels))
        self.conv = nn.Sequential(*layers)
        self.shortcut = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C', H/stride, W/stride)."""
        *hidden, project, norm = self.conv
        out = x
        for layer in hidden:
            out = layer(out)
        out = convolve_and_normalise(project, norm, out)
        return x + out if self.shortcut else out


class MobileNetV2(StagedBackbone):
    """Images (N, 3, H, W) to C2 to C5, (N, C, H/s, W/s) with s = 4, 8, 16, 32 (rounded up).

    C2, C3 and C4 are the last maps at their stride. C5 is the output of the final 1x1 convolution
    (1280 channels), not of the bottleneck before it (320): the classifier was trained on it, and
    with every layer in use no parameter is left without a gradient, which distributed training
    would reject. At stride 32 the wider map costs next to nothing.
    """

    classifier_name = "classifier.1"
    # features[a:b] of the stem and of C2 to C5
    SPANS = ((0, 2), (2, 4), (4, 7), (7, 14), (14, 19))

    def __init__(self, norm: Norm) -> None:
        super().__init__()
        self.name = "mobilenet_v2"
        self.channels = (24, 32, 96, 1280)
        layers = [ConvNormReLU6(3, 32, 3, 2, 1, norm)]
        in_channels = 32
        for expansion, out_channels, count, stride in SETTINGS:
            for index in range(count):
                step = stride if index == 0 else 1
                layers.append(InvertedResidual(in_channels, out_channels, step, expansion, norm))
                in_channels = out_channels
        layers.append(ConvNormReLU6(in_channels, 1280, 1, 1, 1, norm))
        self.features = nn.Sequential(*layers)
        init_convolutions(self)

    @property
    def stages(self) -> list[list[nn.Module]]:
        """The stem, then the layers that end in C2, C3, C4 and C5."""
        layers = list(self.features)
        return [layers[first:last] for first, last in self.SPANS]

    def forward(self, images: Tensor) -> list[Tensor]:
        """Images (N, 3, H, W) to [C2, C3, C4, C5]."""
        x, features = images, []
        for stage in self.stages:
            for layer in stage:
                x = layer(x)
            features.append(x)
        return features[1:]
