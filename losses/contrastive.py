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

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from losses.normalizer import mean_over_ranks

BACKGROUND = -1  # id of a sample that belongs to no instance
ENTRIES_AT_ONCE = 2**25  # similarities held in memory at a time, 128 MiB
NO_NEGATIVE = -1e4  # stands for log(0): finite, so that its gradient is 0 instead of NaN


class _Pairs(NamedTuple):
    """Everything the equation needs, for the online samples that have a positive."""

    rows: Tensor  # (R,) their indices into the query
    ids: Tensor  # (R,)
    weights: Tensor  # (R,) of each pair of that row: 1 / (pairs of the id * number of ids)
    pool: Tensor  # (B, D) samples to contrast with; the first S are the target samples
    pool_ids: Tensor  # (B,)

    def blocks(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Rows, ids and weights of as many rows at a time as may be in memory."""
        size = max(1, ENTRIES_AT_ONCE // max(1, len(self.pool)))
        parts = (self.rows.split(size), self.ids.split(size), self.weights.split(size))
        return zip(*parts, strict=True)


def instance_contrastive_loss(
    query: Tensor,
    key: Tensor,
    query_ids: Tensor,
    key_ids: Tensor,
    temperature: float,
    across_ranks: bool = False,
) -> Tensor:
    """Mean over the pairs of one id, then mean over the ids that have at least one pair.

    Args:
        query: (Q, D) online embeddings, L2-normalised. The gradient flows into them as anchors; as
            negatives of other anchors they are constants.
        key: (S, D) target embeddings, L2-normalised; constants.
        query_ids, key_ids: (Q,), (S,) int64 instance ids >= 0, unique over the images of this
            process, or -1 for background.
        temperature: tau > 0; 0.5 in the paper.
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
        blocks = list(pairs.blocks())
        loss = query.sum() * 0.0
        for rows, ids, weights in blocks:
            args = (query[rows], ids, weights, pairs, len(key), temperature)
            if len(blocks) == 1 or not query.requires_grad:
                loss = loss + _loss_of_rows(*args)
            else:  # recomputing the similarities in the backward pass keeps one block in memory
                loss = loss + checkpoint(_loss_of_rows, *args, use_reentrant=False)
    return loss


def _loss_of_rows(
    anchors: Tensor, ids: Tensor, weights: Tensor, pairs: _Pairs, num_keys: int, tau: float
) -> Tensor:
    similarity = (anchors / tau) @ pairs.pool.T  # (R, B)
    same = ids[:, None] == pairs.pool_ids  # (R, B)
    negatives = similarity.masked_fill(same, NO_NEGATIVE).logsumexp(dim=1)  # (R,)
    row, positive = same[:, :num_keys].nonzero(as_tuple=True)  # few of all R * S are pairs
    return F.softplus(negatives[row] - similarity[row, positive]) @ weights[row]


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
    return _Pairs(rows, query_ids[rows], weights, pool, pool_ids)


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
    temperature: float,
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
    anchors, ids = query[pairs.rows], pairs.ids
    # A sum of cosines is the cosine with the sum; only the nearest sample needs them one by one.
    key_sums, num_keys = _sums_by_id(key, key_ids, ids)
    same_sums, num_same = _sums_by_id(pairs.pool, pairs.pool_ids, ids)
    num_negatives = len(pairs.pool) - num_same  # (R,)
    floor = F.softplus(num_negatives.log() - 1.0 / temperature)
    to_negatives = (anchors * (pairs.pool.sum(dim=0) - same_sums)).sum(dim=1)
    found = query.new_zeros(())
    for rows, row_ids, _ in pairs.blocks() if len(ids) else ():
        nearest = (query[rows] @ key.T).masked_fill(key_ids < 0, -2.0).argmax(dim=1)
        found = found + (key_ids[nearest] == row_ids).sum()
    count = max(1, len(ids))
    return {
        "contrast_floor": (floor * num_keys) @ pairs.weights,
        "cos_positive": (anchors * key_sums).sum(dim=1) @ pairs.weights,
        "cos_negative": (to_negatives / num_negatives.clamp(min=1)).sum() / count,
        "retrieval": found / count,
        "anchors": query.new_tensor(float(len(ids))),
        "instances": query.new_tensor(float(ids.unique().numel())),
    }


def _sums_by_id(samples: Tensor, sample_ids: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """For each id >= 0 of (R,): the sum (R, D) of the samples that have it, and their number."""
    size = int(torch.cat([ids, ids.new_zeros(1)]).max()) + 1
    # A last row takes what no row asks for.
    place = torch.where((sample_ids >= 0) & (sample_ids < size), sample_ids, size)
    sums = samples.new_zeros(size + 1, samples.shape[1]).index_add_(0, place, samples)
    counts = torch.bincount(place, minlength=size + 1)
    return sums[ids], counts[ids]
