"""InfoNCE: find the key of the same image among many others (van den Oord et al., arXiv 1807.03748;
He et al., "Momentum contrast", CVPR 2020, equation 1).

    l_i = -log( e^{<q_i, k_i> / T} / (e^{<q_i, k_i> / T} + sum_n e^{<q_i, n> / T}) )

Legend: N images, Q keys in the queue, D embedding width.
"""

from __future__ import annotations

import torch
from torch import Tensor


def info_nce_logits(query: Tensor, key: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """Similarities divided by the temperature, the positive first.

    Args:
        query: (N, D) L2-normalised; gradients flow into it.
        key: (N, D) L2-normalised, key i of the same image as query i; constant.
        queue: (Q, D) keys of other images, L2-normalised; constant.
        temperature: T > 0.

    Returns:
        (N, 1 + Q) float32.
    """
    with torch.autocast(query.device.type, enabled=False):
        query, key, queue = query.float(), key.detach().float(), queue.detach().float()
        positive = (query * key).sum(dim=1, keepdim=True)  # (N, 1)
        return torch.cat([positive, query @ queue.T], dim=1) / temperature


def info_nce_loss(logits: Tensor) -> Tensor:
    """Mean of the equation over the images: a float32 scalar >= 0, log(1 + Q) if all similarities
    are equal.

    Args:
        logits: (N, 1 + Q), from `info_nce_logits`.
    """
    return (logits.logsumexp(dim=1) - logits[:, 0]).mean()
