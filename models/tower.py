"""Stacks of 3x3 convolutions, the bodies of heads, and the normalisation layers to choose from.

Legend: N images or RoIs, C channels.
"""

from __future__ import annotations

import math

from torch import nn

from models.checks import require_choice

# "bn" estimates its statistics from the images of one process; "gn" (Wu and He, ECCV 2018) needs
# only one image, so it works in small batches and does not depend on how they are split up.
NORMS = ("none", "gn", "bn")
GROUPS = 32  # of GroupNorm, where the number of channels allows it


def conv_tower(
    channels: int, num_convs: int, norm: str = "none", groups: int = GROUPS, bias: bool = False
) -> nn.Sequential:
    """3x3 convolution, normalisation, ReLU, `num_convs` times; (N, C, H, W) to the same.

    Args:
        channels: C.
        num_convs: may be 0.
        norm: one of `NORMS`.
        groups, bias: see `conv_norm`.
    """
    layers: list[nn.Module] = []
    for _ in range(num_convs):
        layers += conv_norm(channels, channels, 3, norm, groups, bias)
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


def conv_norm(
    in_channels: int,
    channels: int,
    kernel_size: int,
    norm: str,
    groups: int = GROUPS,
    bias: bool = False,
) -> list[nn.Module]:
    """A convolution that keeps the map's size, and its normalisation unless that is "none".

    Args:
        in_channels, channels, kernel_size: of the convolution.
        norm: one of `NORMS`.
        groups: of GroupNorm, lowered to a number that divides `channels` into groups of several.
        bias: give the convolution a bias even if the normalisation has one, as FCOS does.

    Raises:
        ValueError: if `norm` is not one of `NORMS`.
    """
    require_choice("normalisation", norm, NORMS)
    bias = bias or norm == "none"
    conv = nn.Conv2d(in_channels, channels, kernel_size, padding=kernel_size // 2, bias=bias)
    if norm == "gn":
        return [conv, nn.GroupNorm(groups_for(channels, groups), channels)]
    return [conv, nn.BatchNorm2d(channels)] if norm == "bn" else [conv]


def groups_for(channels: int, most: int = GROUPS) -> int:
    """The largest divisor of `most` that divides `channels` into groups of several."""
    groups = math.gcd(most, channels)
    # A group of one channel has nothing to normalise on a map of one cell.
    return max(1, groups // 2) if groups == channels else groups
