"""Instance-level contrastive loss of AlignDet's box-domain pre-training (section 3.3).

For an online sample i with instance id y_i, every target sample j with that id is a positive, and
every sample of either view with another id, background included, is a negative:

    l_ij = -log( e^{s_ij} / (e^{s_ij} + sum_{n in Neg_i} e^{s_in}) )
         = softplus( logsumexp_{n in Neg_i} s_in - s_ij ),        s_ij = <q_i, k_j> / temperature

The second form needs the negatives once an online sample, not once a pair, so that memory grows
with the number of samples squared and no cap on proposals is needed.

Legend: Q online samples, S target samples, B samples to contrast with, R rows (online samples that
have a pair), D embedding width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from losses.normalizer import mean_over_ranks

BACKGROUND = -1  # id of a sample that belongs to no instance
ROWS_AT_ONCE = 1024  # rows whose similarities are held in memory at a time
NO_NEGATIVE = -1e4  # stands for log(0): finite, so that its gradient is 0 instead of NaN


class _Pairs(NamedTuple):
    """Everything the equation needs, for the online samples that have a positive."""

    rows: Tensor  # (R,) their indices into the query
    weights: Tensor  # (R,) of each pair of that row: 1 / (pairs of the id * number of ids)
    pool: Tensor  # (B, D) samples to contrast with; the first S are the target samples
    pool_ids: Tensor  # (B,)


def instance_contrastive_loss(
    query: Tensor,
    key: Tensor,
    query_ids: Tensor,
    key_ids: Tensor,
    temperature: float = 0.5,
    across_ranks: bool = False,
) -> Tensor:
    """Mean over the pairs of one id, then mean over the ids that have at least one pair.

    Args:
        query: (Q, D) online embeddings, L2-normalised. The gradient flows into them as anchors; as
            negatives of other anchors they are constants.
        key: (S, D) target embeddings, L2-normalised; constants.
        query_ids, key_ids: (Q,), (S,) int64 instance ids >= 0, unique over the images of this
            process, or -1 for background.
        temperature: tau > 0.
        across_ranks: also contrast with the samples of all other processes, and average over the
            ids of all: then DDP's mean gradient is that of one process with the global batch.
            Off, as in the paper, each process contrasts within its own images.

    Returns:
        float32 scalar >= 0. Its floor is not 0, see ``contrastive_statistics``. Without any pair it
        is a zero that is still attached to ``query``.
    """
    with torch.autocast(query.device.type, enabled=False):
        query, key = query.float(), key.detach().float()
        pairs = _find_pairs(query, key, query_ids, key_ids, across_ranks)
        # Recomputing the similarities in the backward pass keeps one block of rows in memory.
        blocks = pairs.rows.split(ROWS_AT_ONCE)
        remember = len(blocks) == 1 or not query.requires_grad
        loss = query.sum() * 0.0
        for rows, weights in zip(blocks, pairs.weights.split(ROWS_AT_ONCE), strict=True):
            args = (query[rows], query_ids[rows], weights, pairs, key_ids, temperature)
            if remember:
                loss = loss + _loss_of_rows(*args)
            else:
                loss = loss + checkpoint(_loss_of_rows, *args, use_reentrant=False)
    return loss


def _loss_of_rows(
    anchors: Tensor, ids: Tensor, weights: Tensor, pairs: _Pairs, key_ids: Tensor, tau: float
) -> Tensor:
    similarity = anchors @ pairs.pool.T / tau  # (R, B)
    same = ids[:, None] == pairs.pool_ids  # (R, B)
    negatives = similarity.masked_fill(same, NO_NEGATIVE).logsumexp(dim=1)  # (R,)
    positive = same[:, : len(key_ids)]  # (R, S)
    loss = F.softplus(negatives[:, None] - similarity[:, : len(key_ids)])
    return (loss * positive).sum(dim=1) @ weights


def _find_pairs(
    query: Tensor, key: Tensor, query_ids: Tensor, key_ids: Tensor, across_ranks: bool
) -> _Pairs:
    size = int(torch.cat([query_ids, key_ids, query_ids.new_zeros(1)]).max()) + 1
    in_query = torch.bincount(query_ids[query_ids >= 0], minlength=size)  # samples of each id
    in_key = torch.bincount(key_ids[key_ids >= 0], minlength=size)
    in_pairs = in_query * in_key
    rows = ((query_ids >= 0) & (in_pairs[query_ids.clamp(min=0)] > 0)).nonzero().flatten()
    num_ids = (in_pairs > 0).sum().float()
    pool = torch.cat([key, query.detach()])
    pool_ids = torch.cat([key_ids, query_ids])
    if across_ranks and dist.is_available() and dist.is_initialized():
        others = gather_from_other_ranks(pool)
        # Ids are unique on their own rank only, and no other rank has a positive for us.
        pool_ids = torch.cat([pool_ids, pool_ids.new_full((len(others),), BACKGROUND)])
        pool = torch.cat([pool, others])
        num_ids = mean_over_ranks(num_ids)
    else:
        num_ids = num_ids.clamp(min=1.0)
    weights = 1.0 / (in_pairs[query_ids[rows]] * num_ids)
    return _Pairs(rows, weights, pool, pool_ids)


def gather_from_other_ranks(samples: Tensor) -> Tensor:
    """The rows of all other ranks, (sum of their counts, D), detached; counts may differ."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    counts = [torch.zeros(1, dtype=torch.int64, device=samples.device) for _ in range(world_size)]
    dist.all_gather(counts, torch.tensor([len(samples)], device=samples.device))
    longest = max(int(count) for count in counts)
    padded = F.pad(samples.detach(), (0, 0, 0, longest - len(samples))).contiguous()
    gathered = [torch.empty_like(padded) for _ in range(world_size)]
    dist.all_gather(gathered, padded)
    return torch.cat(
        [samples.new_zeros(0, samples.shape[1])]
        + [g[: int(n)] for r, (g, n) in enumerate(zip(gathered, counts, strict=True)) if r != rank]
    )


@torch.no_grad()
def contrastive_statistics(
    query: Tensor,
    key: Tensor,
    query_ids: Tensor,
    key_ids: Tensor,
    temperature: float = 0.5,
    across_ranks: bool = False,
) -> dict[str, Tensor]:
    """What tells a healthy run from a stuck one; arguments as of ``instance_contrastive_loss``.

    Returns:
        ``contrast_floor``: the loss at cosine 1 for all positives and 0 for all negatives,
        log(1 + K e^{-1/tau}) with K negatives an anchor; ``cos_positive`` and ``cos_negative``:
        mean cosines of the pairs and of the anchors with their negatives; ``retrieval``: share of
        anchors whose most similar target sample of any instance is of their own; ``anchors`` and
        ``instances``: how many online samples, and ids, have a pair. Scalars, 0 where undefined.
    """
    query, key = query.float(), key.float()
    pairs = _find_pairs(query, key, query_ids, key_ids, across_ranks)
    names = ("contrast_floor", "cos_positive", "cos_negative", "retrieval")
    sums = dict.fromkeys(names, query.new_zeros(()))
    for rows, weights in zip(
        pairs.rows.split(ROWS_AT_ONCE), pairs.weights.split(ROWS_AT_ONCE), strict=True
    ):
        if len(rows) == 0:
            break
        ids = query_ids[rows]
        cosine = query[rows] @ pairs.pool.T  # (R, B)
        same = ids[:, None] == pairs.pool_ids
        num_negatives = (~same).sum(dim=1)  # (R,)
        positive = same[:, : len(key)]
        to_key = cosine[:, : len(key)]
        nearest = to_key.masked_fill(key_ids < 0, -2.0).argmax(dim=1)
        floor = F.softplus(num_negatives.log() - 1.0 / temperature)
        values = {
            "contrast_floor": (floor * positive.sum(dim=1)) @ weights,
            "cos_positive": (to_key * positive).sum(dim=1) @ weights,
            "cos_negative": ((cosine * ~same).sum(dim=1) / num_negatives.clamp(min=1)).sum(),
            "retrieval": (key_ids[nearest] == ids).sum(),
        }
        sums = {name: sums[name] + values[name] for name in names}
    count = max(1, len(pairs.rows))
    return {
        "contrast_floor": sums["contrast_floor"],
        "cos_positive": sums["cos_positive"],
        "cos_negative": sums["cos_negative"] / count,
        "retrieval": sums["retrieval"] / count,
        "anchors": query.new_tensor(float(len(pairs.rows))),
        "instances": query_ids[pairs.rows].unique().numel() * query.new_ones(()),
    }
