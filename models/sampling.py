"""Choose the anchors or RoIs that take part in a loss when negatives far outnumber positives.

Legend: A anchors or RoIs, S samples.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.assign import BACKGROUND


def sample_balanced(matched: Tensor, count: int, positive_fraction: float) -> Tensor:
    """A random part of the positives, topped up with random negatives (Fast R-CNN, section 2.3).

    Args:
        matched: (A,) from an assigner: a box index, `BACKGROUND`, or lower, which is not sampled.
        count: how many samples to draw at most.
        positive_fraction: which part of `count` may be positive, in 0..1. Negatives fill slots
            that positives leave empty, never the reverse.

    Returns:
        (S,) int64 ascending indices into `matched`, S <= count.
    """
    positives = random_part((matched >= 0).nonzero().flatten(), int(count * positive_fraction))
    negatives = (matched == BACKGROUND).nonzero().flatten()
    negatives = random_part(negatives, count - len(positives))
    return torch.cat((positives, negatives)).sort().values


def random_part(items: Tensor, count: int) -> Tensor:
    """At most `count` of `items`, each with the same probability."""
    if len(items) <= count:
        return items
    return items[torch.randperm(len(items), device=items.device)[:count]]
