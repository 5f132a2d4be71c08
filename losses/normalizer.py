"""The divisor for a sum of losses when the batch is spread over processes."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def mean_over_ranks(count: Tensor | float, minimum: float = 1.0) -> Tensor:
    """The mean over ranks of a count, such as the number of positives.

    DistributedDataParallel averages gradients over ranks. If every rank divides its sum of losses
    by this mean, that average is the gradient of one process with the whole batch. `minimum`
    therefore bounds the total over all ranks, not the mean. One process, or no group, is one rank.

    Args:
        count: non-negative scalar; a tensor on the device of the process group's backend.
        minimum: lower bound of the total; keeps a batch without positives from dividing by 0.

    Returns:
        float32 scalar without gradient; `count` itself is not modified.
    """
    total = torch.as_tensor(count).detach().to(torch.float32, copy=True)
    ranks = 1
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(total)
        ranks = dist.get_world_size()
    return total.clamp(min=minimum) / ranks
