"""Swin Transformer without the classifier (Liu et al., ICCV 2021, section 3 and appendix A1).

Parameter names are torchvision's (`features.0.0.weight`, ...), so its weights load unchanged; its
last norm is that of C5. C2 to C4 have norms that classifiers lack: `norm_c2`, `norm_c3`, `norm_c4`.

Legend: N images, C channels, W windows of an image, S cells of a window, A heads.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models.backbone_base import StagedBackbone

PATCH = 4  # px


@dataclass(frozen=True)
class SwinConfig:
    """One size of the architecture."""

    name: str
    width: int  # channels of C2; every further stage has twice as many
    depths: tuple[int, int, int, int]  # blocks of C2 to C5
    heads: tuple[int, int, int, int]
    drop: float  # chance that training leaves out the last block of an image; the first: 0
    window: int = 7  # cells along a side


SIZES = {
    size.name: size
    for size in (
        SwinConfig("swin_t", 96, (2, 2, 6, 2), (3, 6, 12, 24), drop=0.2),
        SwinConfig("swin_s", 96, (2, 2, 18, 2), (3, 6, 12, 24), drop=0.3),
        SwinConfig("swin_b", 128, (2, 2, 18, 2), (4, 8, 16, 32), drop=0.5),
    )
}


class SwinTransformer(StagedBackbone):
    """Images (N, 3, H, W) to C2 to C5, (N, C, H/s, W/s) with s = 4, 8, 16, 32 (rounded up)."""

    classifier_name = "head"

    def __init__(self, config: SwinConfig) -> None:
        super().__init__()
        self.name = config.name
        self.channels = tuple(config.width * 2**stage for stage in range(4))
        layers: list[nn.Module] = [Patches(config.width)]
        drops = iter(torch.linspace(0, config.drop, sum(config.depths), device="cpu").tolist())
        for stage, channels in enumerate(self.channels):
            if stage > 0:
                layers.append(PatchMerging(self.channels[stage - 1]))
            blocks = (
                Block(channels, config.heads[stage], config.window, index % 2 == 1, next(drops))
                for index in range(config.depths[stage])
            )
            layers.append(nn.Sequential(*blocks))
        self.features = nn.Sequential(*layers)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        self.norm_c2, self.norm_c3, self.norm_c4, self.norm = map(nn.LayerNorm, self.channels)
        self.checkpoints = False

    @property
    def stages(self) -> list[list[nn.Module]]:
        """The patches, then the layers that end in C2, C3, C4 and C5, each with its norm."""
        layers = list(self.features)
        return [
            layers[:1],
            [*layers[1:2], self.norm_c2],
            [*layers[2:4], self.norm_c3],
            [*layers[4:6], self.norm_c4],
            [*layers[6:8], self.norm],
        ]

    def skip_maps(self, count: int) -> None:
        """Freeze the norms of the first `count` maps, see the base class."""
        for norm in (self.norm_c2, self.norm_c3, self.norm_c4)[:count]:
            norm.requires_grad_(False)

    def checkpoint_activations(self) -> None:
        """See the base class."""
        self.checkpoints = True

    @torch.compiler.disable  # paddings at every block: sizes as symbols take minutes to trace
    def forward(
        self, images: Tensor, hidden: Tensor | None = None, token: Tensor | None = None
    ) -> list[Tensor]:
        """Images (N, 3, H, W) to [C2, C3, C4, C5].

        For masked image modelling, `token` (C,) takes the place of the embeddings of the 4x4 pixels
        that are `hidden` (N, H/4, W/4) bool.
        """
        (patches,), *stages = self.stages
        x, features = patches(images), []
        if hidden is not None:
            x = torch.where(hidden[..., None], token.to(x.dtype), x)
        for *layers, norm in stages:
            for layer in layers:
                x = self.run(layer, x)
            features.append(norm(x).permute(0, 3, 1, 2).contiguous())
        return features

    def run(self, layer: nn.Module, x: Tensor) -> Tensor:
        """The blocks of a stage, or a merging, with checkpoints or without."""
        if not (self.checkpoints and torch.is_grad_enabled()):
            return layer(x)
        for part in layer if isinstance(layer, nn.Sequential) else [layer]:
            x = checkpoint(part, x, use_reentrant=False)  # with the same random numbers
        return x


class ChannelsLast(nn.Module):
    """(N, C, H, W) to (N, H, W, C)."""

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return x.permute(0, 2, 3, 1)


class Patches(nn.Sequential):
    """Every 4x4 pixels become a cell; (N, 3, H, W) to (N, H/4, W/4, C), rounded up."""

    def __init__(self, channels: int) -> None:
        conv = nn.Conv2d(3, channels, PATCH, stride=PATCH)
        super().__init__(conv, ChannelsLast(), nn.LayerNorm(channels))

    def forward(self, images: Tensor) -> Tensor:
        """See the class; below and to the right, images are filled up with zeros."""
        height, width = images.shape[-2:]
        return super().forward(F.pad(images, (0, -width % PATCH, 0, -height % PATCH)))


class PatchMerging(nn.Module):
    """2x2 cells become one with twice the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduction = nn.Linear(4 * channels, 2 * channels, bias=False)
        self.norm = nn.LayerNorm(4 * channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C) to (N, H/2, W/2, 2C), rounded up."""
        x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        # Channels in the order of the published weights: down a column first.
        corners = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.reduction(self.norm(torch.cat(corners, dim=-1)))


class Block(nn.Module):
    """Attention within windows, then two layers per cell, each with a shortcut (equation 3)."""

    def __init__(self, channels: int, heads: int, window: int, shifted: bool, drop: float) -> None:
        super().__init__()
        self.drop = drop
        self.norm1 = nn.LayerNorm(channels)
        self.attn = WindowAttention(channels, heads, window, window // 2 if shifted else 0)
        self.norm2 = nn.LayerNorm(channels)
        # The third is where torchvision has a dropout that it never uses.
        self.mlp = nn.Sequential(
            nn.Linear(channels, 4 * channels),
            nn.GELU(),
            nn.Identity(),
            nn.Linear(4 * channels, channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C) to the same shape."""
        x = x + stochastic_depth(self.attn(self.norm1(x)), self.drop, self.training)
        return x + stochastic_depth(self.mlp(self.norm2(x)), self.drop, self.training)


def stochastic_depth(x: Tensor, drop: float, training: bool) -> Tensor:
    """In training, zero for a share `drop` of the images, and the others enlarged so that the mean
    stays (Huang et al., "Deep networks with stochastic depth", ECCV 2016). Shape (N, ...)."""
    if not training or drop == 0:
        return x
    kept = torch.full_like(x[(slice(None), *[slice(1)] * (x.ndim - 1))], 1 - drop).bernoulli()
    return x * (kept / (1 - drop))


class WindowAttention(nn.Module):
    """Cells attend to those of their window (section 3.2).

    Args:
        channels: C.
        heads: A.
        window: cells along its side.
        shift: how many cells the windows are moved down and to the right.
    """

    def __init__(self, channels: int, heads: int, window: int, shift: int) -> None:
        super().__init__()
        self.heads, self.window, self.shift = heads, window, shift
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * window - 1) ** 2, heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.register_buffer("relative_position_index", relative_position_index(window))

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C) to the same shape; maps are filled up with zeros to whole windows."""
        count, height, width, channels = x.shape
        x = F.pad(x, (0, 0, 0, -width % self.window, 0, -height % self.window))
        size = x.shape[1:3]
        # A side of one window has nothing to shift to.
        shifts = [self.shift if side > self.window else 0 for side in size]
        x = torch.roll(x, [-shift for shift in shifts], dims=(1, 2))
        windows = self.attend(in_windows(x, self.window), self.bias(size, shifts))
        x = from_windows(windows, count, size, self.window)
        return torch.roll(x, shifts, dims=(1, 2))[:, :height, :width]

    def bias(self, size: tuple[int, int], shifts: list[int]) -> Tensor:
        """What attention adds to the products of queries and keys: (W, A, S, S), or (1, A, S, S) if
        it is the same for all windows."""
        cells = self.window**2
        table = self.relative_position_bias_table[self.relative_position_index]
        bias = table.view(cells, cells, self.heads).permute(2, 0, 1)[None]
        if not any(shifts):
            return bias
        regions = shifted_regions(size, shifts, self.window, table.device)
        apart = regions[:, None, :] != regions[:, :, None]  # (W, S, S)
        return bias.masked_fill(apart[:, None], float("-inf"))

    def attend(self, windows: Tensor, bias: Tensor) -> Tensor:
        """(NW, S, C) and a bias as above to (NW, S, C)."""
        total, cells, channels = windows.shape
        qkv = self.qkv(windows).view(total, cells, 3, self.heads, channels // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each (NW, A, S, C/A)
        if len(bias) > 1:
            bias = bias.repeat(total // len(bias), 1, 1, 1)
        out = F.scaled_dot_product_attention(query, key, value, bias.to(query.dtype))
        return self.proj(out.transpose(1, 2).reshape(total, cells, channels))


def relative_position_index(window: int) -> Tensor:
    """Row of the table of biases for every pair of cells, (S * S,): by how many cells they differ
    down and across."""
    side = torch.arange(window)
    cells = torch.cartesian_prod(side, side)  # (S, 2)
    offsets = cells[:, None] - cells[None] + window - 1  # (S, S, 2), from 0
    return (offsets[..., 0] * (2 * window - 1) + offsets[..., 1]).flatten()


def shifted_regions(
    size: tuple[int, int], shifts: list[int], window: int, device: torch.device
) -> Tensor:
    """(W, S): cells with different numbers were not neighbours before the map was rolled (figure
    4), so they must not attend to each other."""
    rows, columns = (
        (torch.arange(side, device=device) >= side - shift).long()
        for side, shift in zip(size, shifts, strict=True)
    )
    regions = rows[:, None] * 2 + columns
    return in_windows(regions[None, :, :, None], window)[..., 0]


def in_windows(x: Tensor, window: int) -> Tensor:
    """(N, H, W, C) to (N * windows, S, C), row by row."""
    count, height, width, channels = x.shape
    x = x.view(count, height // window, window, width // window, window, channels)
    return x.transpose(2, 3).reshape(-1, window * window, channels)


def from_windows(windows: Tensor, count: int, size: tuple[int, int], window: int) -> Tensor:
    """The inverse of `in_windows`, for `count` images of (height, width) `size`."""
    height, width = size
    x = windows.view(count, height // window, width // window, window, window, -1)
    return x.transpose(2, 3).reshape(count, height, width, -1)
