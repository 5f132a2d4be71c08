"""Feature pyramid network (Lin et al., CVPR 2017): strong semantics at every scale.

Legend: N images, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.checks import require_choice
from models.tower import conv_norm

EXTRA_LEVELS = {"none": 0, "pool": 1, "p6p7_from_p5": 2, "p6p7_from_c5": 2}


@dataclass(frozen=True)
class FPNConfig:
    """Settings of the pyramid."""

    channels: int = 256  # of every level of the pyramid
    # Levels above P5: "p6p7_from_p5" (FCOS) and "p6p7_from_c5" (RetinaNet) add two by strided
    # convolution, "pool" adds a subsampled P5 (Faster R-CNN), "none" adds nothing.
    extra: str = "p6p7_from_p5"
    norm: str = "none"  # after the lateral and output convolutions, one of models.tower.NORMS


class FPN(nn.Module):
    """Turns a backbone's maps, finest first, into as many pyramid levels plus the extra ones.

    A level has the size of its input map; each extra level halves the one before (rounded up).
    """

    def __init__(self, in_channels: Sequence[int], config: FPNConfig) -> None:
        super().__init__()
        require_choice("FPN extra", config.extra, EXTRA_LEVELS)
        self.config = config
        self.num_levels = len(in_channels) + EXTRA_LEVELS[config.extra]
        channels = config.channels
        self.lateral = nn.ModuleList(conv(c, channels, 1, config.norm) for c in in_channels)
        self.output = nn.ModuleList(conv(channels, channels, 3, config.norm) for _ in in_channels)
        if EXTRA_LEVELS[config.extra] == 2:
            p6_in = channels if config.extra == "p6p7_from_p5" else in_channels[-1]
            self.p6 = nn.Conv2d(p6_in, channels, 3, stride=2, padding=1)
            self.p7 = nn.Conv2d(channels, channels, 3, stride=2, padding=1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, a=1)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """List of (N, C_i, H_i, W_i), finest first, to a list of (N, C, H_j, W_j)."""
        merged = [lateral(x) for lateral, x in zip(self.lateral, features, strict=True)]
        for i in range(len(merged) - 1, 0, -1):  # coarsest to finest
            merged[i - 1] = merged[i - 1] + enlarged(merged[i], merged[i - 1].shape[-2:])
        levels = [output(x) for output, x in zip(self.output, merged, strict=True)]
        return levels + self._extra_levels(features[-1], levels[-1])

    def _extra_levels(self, c5: Tensor, p5: Tensor) -> list[Tensor]:
        if self.config.extra == "none":
            return []
        if self.config.extra == "pool":
            return [F.max_pool2d(p5, kernel_size=1, stride=2)]
        # Not in bfloat16: on processors with AMX, oneDNN's stride-2 convolution of a map 1 or 2 px
        # wide (torch 2.15) reads past its end. These maps are so small that this costs nothing.
        with torch.autocast(p5.device.type, enabled=False):
            below = p5 if self.config.extra == "p6p7_from_p5" else c5
            p6 = self.p6(below.to(self.p6.weight.dtype))
            p7 = self.p7(F.relu(p6))
        return [p6.to(p5.dtype), p7.to(p5.dtype)]


def enlarged(x: Tensor, size: tuple[int, int]) -> Tensor:
    """(N, C, H, W) with its values repeated to (height, width) `size`, in the same precision."""
    # Autocast would make it float32 on a GPU, and so the sum: twice the bytes, for copied numbers.
    with torch.autocast(x.device.type, enabled=False):
        return F.interpolate(x, size=size, mode="nearest")


def conv(in_channels: int, channels: int, kernel_size: int, norm: str) -> nn.Module:
    """A convolution, followed by a normalisation unless `norm` is "none"."""
    layers = conv_norm(in_channels, channels, kernel_size, norm)
    return layers[0] if len(layers) == 1 else nn.Sequential(*layers)
