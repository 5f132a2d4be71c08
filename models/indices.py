"""Indices of the true entries of masks, with one wait for the GPU where `nonzero` takes one each.

How many entries are true is only known on the device, and `nonzero` waits until it knows. For a
training step that looks at each image and each level by itself, this adds up.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def true_indices(masks: Sequence[Tensor]) -> list[Tensor]:
    """For each mask (A,), the ascending indices of its true entries; on a GPU this waits once.

    Args:
        masks: bool, all on one device; A may differ, and may be 0.
    """
    if not masks:
        return []
    counts = torch.stack([mask.sum() for mask in masks]).tolist()
    pairs = zip(masks, counts, strict=True)
    return [mask.nonzero_static(size=count).squeeze(1) for mask, count in pairs]
