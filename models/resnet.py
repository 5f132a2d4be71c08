"""ResNet 18, 34, 50 and 101 without the classifier (He et al., CVPR 2016, table 1).

Parameter names are torchvision's, so its ImageNet weights load unchanged. As there, a bottleneck
strides in its 3x3 convolution ("ResNet v1.5"), which is more accurate than striding in the 1x1.

Legend: N images, C channels.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from models.backbone_base import StagedBackbone, init_convolutions
from models.checks import require_choice
from models.norm import convolve_and_normalise

Norm = Callable[[int], nn.Module]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut around them (ResNet 18 and 34)."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride, padding=1, bias=False)
        self.bn1 = norm(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = norm(width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = projection(in_channels, width, stride, norm)

    def start_as_identity(self) -> None:
        """See `zero_scale`."""
        zero_scale(self.bn2)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C', H/stride, W/stride)."""
        out = self.relu(convolve_and_normalise(self.conv1, self.bn1, x))
        out = convolve_and_normalise(self.conv2, self.bn2, out)
        out += x if self.downsample is None else convolve_and_normalise(*self.downsample, x)
        return self.relu(out)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions with a shortcut around them (ResNet 50 and 101)."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int, norm: Norm) -> None:
        super().__init__()
        out_channels = width * self.expansion
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = norm(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = norm(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = norm(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = projection(in_channels, out_channels, stride, norm)

    def start_as_identity(self) -> None:
        """See `zero_scale`."""
        zero_scale(self.bn3)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C', H/stride, W/stride)."""
        out = self.relu(convolve_and_normalise(self.conv1, self.bn1, x))
        out = self.relu(convolve_and_normalise(self.conv2, self.bn2, out))
        out = convolve_and_normalise(self.conv3, self.bn3, out)
        out += x if self.downsample is None else convolve_and_normalise(*self.downsample, x)
        return self.relu(out)


def zero_scale(norm: nn.Module) -> None:
    """Let a residual block start as its shortcut (Goyal et al., arXiv 1706.02677, section 5.1).

    This way, a random ResNet keeps more of the image in its deep maps, which matters as long as it
    is frozen. A frozen norm could never leave zero, so it is left unchanged.
    """
    if norm.weight.requires_grad:
        nn.init.zeros_(norm.weight)


def projection(in_channels: int, out_channels: int, stride: int, norm: Norm) -> nn.Module | None:
    """The shortcut's 1x1 convolution, or None where the input can be added unchanged."""
    if stride == 1 and in_channels == out_channels:
        return None
    conv = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
    return nn.Sequential(conv, norm(out_channels))


DEPTHS = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
}


class ResNet(StagedBackbone):
    """Images (N, 3, H, W) to C2 to C5, (N, C, H/s, W/s) with s = 4, 8, 16, 32 (rounded up).

    Args:
        depth: a key of `DEPTHS`.
        norm: makes a normalisation layer from a number of channels.
        width: of the 3x3 convolutions of the first stage; each stage doubles it.
    """

    def __init__(self, depth: int, norm: Norm, width: int = 64) -> None:
        super().__init__()
        require_choice("ResNet depth", depth, DEPTHS)
        block, counts = DEPTHS[depth]
        self.name = f"resnet{depth}"
        self.channels = tuple(width * 2**i * block.expansion for i in range(4))
        self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = norm(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = residual_stage(block, width, width, counts[0], 1, norm)
        self.layer2 = residual_stage(block, self.channels[0], 2 * width, counts[1], 2, norm)
        self.layer3 = residual_stage(block, self.channels[1], 4 * width, counts[2], 2, norm)
        self.layer4 = residual_stage(block, self.channels[2], 8 * width, counts[3], 2, norm)
        init_convolutions(self)
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            for residual in stage:
                residual.start_as_identity()

    @property
    def stages(self) -> list[list[nn.Module]]:
        """The stem, then the layers that end in C2, C3, C4 and C5."""
        stem = [self.conv1, self.bn1]
        return [stem, [self.layer1], [self.layer2], [self.layer3], [self.layer4]]

    def forward(self, images: Tensor) -> list[Tensor]:
        """Images (N, 3, H, W) to [C2, C3, C4, C5]."""
        x = self.maxpool(self.relu(convolve_and_normalise(self.conv1, self.bn1, images)))
        features = []
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
            features.append(x)
        return features


def residual_stage(
    block: type[BasicBlock | Bottleneck],
    in_channels: int,
    width: int,
    count: int,
    stride: int,
    norm: Norm,
) -> nn.Sequential:
    """`count` blocks; the first one strides and changes the number of channels."""
    first = block(in_channels, width, stride, norm)
    rest = [block(width * block.expansion, width, 1, norm) for _ in range(count - 1)]
    return nn.Sequential(first, *rest)
