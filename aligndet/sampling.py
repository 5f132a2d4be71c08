"""Which predictions enter the contrast."""

from __future__ import annotations

import torch
from torch import Tensor


def sample_positives_first(ids: Tensor, count: int) -> Tensor:
    """Indices of at most ``count`` samples: instances first, the rest background at random.

    Args:
        ids: (A,) int64, an instance id >= 0, -1 background, anything lower is never sampled.
        count: how many at most.

    Returns:
        (S,) int64 ascending indices into ``ids``, S <= count. If there are more instances than
        ``count``, a random part of them is taken.
    """
    positive, negative = (ids >= 0).nonzero().flatten(), (ids == -1).nonzero().flatten()
    positive = _random_part(positive, count)
    negative = _random_part(negative, count - len(positive))
    return torch.cat([positive, negative]).sort().values


def _random_part(items: Tensor, count: int) -> Tensor:
    if len(items) <= count:
        return items
    return items[torch.randperm(len(items), device=items.device)[:count]]
