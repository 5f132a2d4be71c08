"""Choose the anchors or RoIs that take part in a loss when negatives far outnumber positives.

Legend: N images, A anchors or RoIs of an image, S samples of an image.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from models.assign import BACKGROUND
from models.indices import true_indices


def sample_balanced(
    matched: Sequence[Tensor] | Tensor, count: int, positive_fraction: float
) -> list[Tensor]:
    """A random part of each image's positives, topped up with random negatives (Fast R-CNN,
    section 2.3); on a GPU this waits once, whatever N is.

    Args:
        matched: for each image, (A,) from an assigner: a box index, `BACKGROUND`, or lower, which
            is not sampled; A may differ.
        count: how many samples to draw per image at most.
        positive_fraction: which part of `count` may be positive, in 0..1. Negatives fill slots
            that positives leave empty, never the reverse.

    Returns:
        For each image, (S,) int64 ascending indices into its A, S <= count.
    """
    positives = [m >= 0 for m in matched]
    negatives = [m == BACKGROUND for m in matched]
    indices = true_indices(positives + negatives)
    chosen = []
    for of_image in range(len(matched)):
        some = random_part(indices[of_image], int(count * positive_fraction))
        others = random_part(indices[len(matched) + of_image], count - len(some))
        chosen.append(torch.cat((some, others)).sort().values)
    return chosen


def random_part(items: Tensor, count: int) -> Tensor:
    """At most `count` of `items`, each with the same probability."""
    if len(items) <= count:
        return items
    return items[torch.randperm(len(items), device=items.device)[:count]]


def over_batch(indices: Sequence[Tensor], length: int) -> Tensor:
    """Indices into the anchors of each image, `length` per image, as one tensor of indices into
    the anchors of all images."""
    return torch.cat([n * length + of_image for n, of_image in enumerate(indices)])
