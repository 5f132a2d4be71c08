"""The target branch: an exponential moving average of the online branch (AlignDet, section 3.3).

The momentum schedule is BYOL's: m rises from its base to 1 along half a cosine.
"""

from __future__ import annotations

import math

import torch
from torch import nn


def momentum_at(step: int, total_steps: int, base: float = 0.996) -> float:
    """m = 1 - (1 - base) (cos(pi t / T) + 1) / 2 for step t of T."""
    return 1.0 - (1.0 - base) * (math.cos(math.pi * step / total_steps) + 1.0) / 2.0


@torch.no_grad()
def update_target(target: nn.Module, online: nn.Module, momentum: float) -> None:
    """target <- m target + (1 - m) online, in place; buffers are copied.

    Raises:
        ValueError: the two do not have the same parameters in the same order.
    """
    averaged = [name for name, _ in target.named_parameters()]
    if averaged != [name for name, _ in online.named_parameters()]:
        raise ValueError("target and online differ in their parameters; build one as a copy")
    torch._foreach_lerp_(
        [p for p in target.parameters()], [p for p in online.parameters()], 1.0 - momentum
    )
    for mine, theirs in zip(target.buffers(), online.buffers(), strict=True):
        mine.copy_(theirs)
