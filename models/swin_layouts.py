"""How other projects name a Swin's weights, and order and size some of them.

Legend: C channels, A heads.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from models.renaming import Names

POSITION_TABLE = "relative_position_bias_table"
MERGING = re.compile(r"features\.[246]\.(reduction\.weight|norm\.(weight|bias))")


def in_features(template: str, shift: int) -> Callable[[re.Match], str]:
    """Our name for part of their stage m[1]: `template` has {0}, twice its number plus `shift`, {1}
    for m[2], and so on."""
    return lambda m: "features." + template.format(2 * int(m[1]) + shift, *m.groups()[1:])


def stages(layers: str, attention: str, first: str, second: str, merging: int) -> Names:
    """Names of the blocks and mergings.

    Args:
        layers: what their stages 0 to 3 are called.
        attention: of a block.
        first, second: the two layers per cell.
        merging: 0 if a merging belongs to the stage that it begins, 2 if to the one that it ends.
    """
    block = rf"{layers}\.(\d)\.blocks\.(\d+)\."
    return (
        (rf"{block}(norm[12])\.(weight|bias)", in_features("{}.{}.{}.{}", 1)),
        (rf"{block}{attention}\.(qkv|proj)\.(weight|bias)", in_features("{}.{}.attn.{}.{}", 1)),
        (rf"{block}{attention}\.({POSITION_TABLE})", in_features("{}.{}.attn.{}", 1)),
        (rf"{block}{first}\.(weight|bias)", in_features("{}.{}.mlp.0.{}", 1)),
        (rf"{block}{second}\.(weight|bias)", in_features("{}.{}.mlp.3.{}", 1)),
        (rf"{layers}\.(\d)\.downsample\.(.+)", in_features("{}.{}", merging)),
    )


PATCHES: Names = (
    (r"patch_embed\.proj(?:ection)?\.(weight|bias)", r"features.0.0.\1"),
    (r"patch_embed\.norm\.(weight|bias)", r"features.0.2.\1"),
)
LAST_NORM: Names = ((r"norm\.(weight|bias)", r"norm.\1"),)
MICROSOFT_SWIN = PATCHES + stages("layers", "attn", r"mlp\.fc1", r"mlp\.fc2", 2) + LAST_NORM
TIMM_SWIN = PATCHES + stages("layers", "attn", r"mlp\.fc1", r"mlp\.fc2", 0) + LAST_NORM
# The same after mmdetection has trained it with its norms of all maps, or as mmpretrain has it.
MM_SWIN: Names = (
    *PATCHES,
    *stages("stages", r"attn\.w_msa", r"ffn\.layers\.0\.0", r"ffn\.layers\.1", 2),
    (r"norm([012])\.(weight|bias)", lambda m: f"norm_c{int(m[1]) + 2}.{m[2]}"),
    (r"norm3\.(weight|bias)", r"norm.\1"),
)


def from_unfolded(name: str, value: Tensor) -> Tensor:
    """Weights of a merging whose 2x2 cells came from `nn.Unfold`: channel by channel, each row by
    row. Ours come cell by cell, down a column first. Other weights are unchanged.

    Args:
        name: ours.
        value: (..., 4C) of a merging.
    """
    if not MERGING.fullmatch(name):
        return value
    cells = value.reshape(*value.shape[:-1], value.shape[-1] // 4, 2, 2)  # (..., C, 2, 2)
    return cells.transpose(-1, -3).reshape(value.shape)  # column, row, channel


def resized_table(table: Tensor, rows: int) -> Tensor:
    """A table of position biases (R, A) for windows of another size, (rows, A): bicubic, as the
    authors do (section 4.1). Unchanged if it is no square, or has that many rows."""
    old, new = math.isqrt(len(table)), math.isqrt(rows)
    if old == new or old * old != len(table) or new * new != rows:
        return table
    square = table.float().T.reshape(1, -1, old, old)
    resized = F.interpolate(square, size=(new, new), mode="bicubic", align_corners=False)
    return resized.reshape(-1, rows).T.to(table.dtype)
