"""Instance-level contrastive loss of AlignDet's box-domain pre-training (section 3.3).

For an online sample i with instance id y_i, every target sample j with that id is a positive, and
every sample of either view with another id, background included, is a negative:

    l_ij = -log( e^{s_ij} / (e^{s_ij} + sum_{n in Neg_i} e^{s_in}) )
         = softplus( logsumexp_{n in Neg_i} s_in - s_ij ),        s_ij = <q_i, k_j> / temperature

The second form needs the negatives once per online sample, not once per pair, so memory grows only
with the number of samples squared and no cap on proposals is needed.

`instance_contrastive_loss` is the loss of given samples. Pre-training also checks whether a run is
healthy: `find_pairs` prepares the samples, `contrastive_loss` and `contrastive_statistics` use
them.

Legend: Q online samples, S target samples, B samples to contrast with, R queries (online samples
that have a pair), D embedding width.
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
ENTRIES_AT_ONCE = 2**25  # similarities held in memory at a time, 128 MiB
NO_NEGATIVE = -1e4  # used as log(0): finite, so that its gradient is 0 instead of NaN


class Pairs(NamedTuple):
    """Everything the equation needs; embeddings are float32."""

    samples: Tensor  # (Q, D) online samples; gradients flow into them
    rows: Tensor  # (R,) indices into them: the queries
    ids: Tensor  # (R,)
    weights: Tensor  # (R,) of each pair of that query: 1 / (pairs of the id * number of ids)
    num_positives: Tensor  # (R,) target samples with the id
    pool: Tensor  # (B, D) samples to contrast with, constants; the first S are the target samples
    pool_ids: Tensor  # (B,)
    num_keys: int  # S

    def blocks(self) -> list[tuple[Tensor, Tensor, Tensor, int]]:
        """Rows, ids, weights and the number of pairs of as many queries at a time as fit in
        memory."""
        size = max(1, ENTRIES_AT_ONCE // max(1, len(self.pool)))
        parts = (self.rows.split(size), self.ids.split(size), self.weights.split(size))
        counts = torch.stack([block.sum() for block in self.num_positives.split(size)]).tolist()
        return list(zip(*parts, counts, strict=True))


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
        query, key, query_ids, key_ids, across_ranks: see `find_pairs`.
        temperature: tau > 0; 0.5 in the paper.

    Returns:
        See `contrastive_loss`.
    """
    pairs = find_pairs(query, key, query_ids, key_ids, across_ranks)
    return contrastive_loss(pairs, temperature)


def find_pairs(
    query: Tensor,
    key: Tensor,
    query_ids: Tensor,
    key_ids: Tensor,
    across_ranks: bool = False,
) -> Pairs:
    """Find the samples that attract each other, and those they are contrasted with.

    Args:
        query: (Q, D) online embeddings, L2-normalised. Gradients flow into them as queries; as
            negatives of other queries they are constants.
        key: (S, D) target embeddings, L2-normalised; constants.
        query_ids, key_ids: (Q,), (S,) int64 instance ids >= 0, unique over the images of this
            process, or -1 for background.
        across_ranks: also contrast with the samples of all other processes, and average over all
            their ids: then DDP's mean gradient is that of one process with the global batch.
            If off, as in the paper, each process contrasts only its own images.
    """
    query, key = query.float(), key.detach().float()
    in_query = occurrences(query_ids, query_ids)  # (Q,) online samples with the id of each
    in_key = occurrences(query_ids, key_ids)  # (Q,) target samples with it: its positives
    paired = (query_ids >= 0) & (in_key > 0)
    rows = paired.nonzero().squeeze(1)
    num_ids = (paired / in_query).sum().round()  # the samples of an id count 1 together
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
    weights = 1.0 / ((in_query * in_key)[rows] * num_ids)
    return Pairs(query, rows, query_ids[rows], weights, in_key[rows], pool, pool_ids, len(key))


def occurrences(ids: Tensor, among: Tensor) -> Tensor:
    """How often each of the `ids` (Q,) occurs in `among` (S,): (Q,) int64."""
    ordered = among.sort().values
    return torch.searchsorted(ordered, ids, right=True) - torch.searchsorted(ordered, ids)


def contrastive_loss(pairs: Pairs, temperature: float) -> Tensor:
    """The equation above, averaged over the pairs of one id and then over the ids.

    Returns:
        float32 scalar >= 0; it does not go to 0, see `contrastive_statistics`. Without any pair it
        is a zero that is still attached to the online samples.
    """
    samples, blocks = pairs.samples, pairs.blocks()
    with torch.autocast(samples.device.type, enabled=False):
        loss = samples.sum() * 0.0
        for rows, *of_block in blocks:
            args = (samples[rows], *of_block, pairs.pool, pairs.pool_ids, pairs.num_keys)
            if len(blocks) == 1 or not samples.requires_grad:
                loss = loss + _loss_of_block(*args, temperature)
            else:  # recomputing the similarities in the backward pass keeps one block in memory
                loss = loss + checkpoint(_loss_of_block, *args, temperature, use_reentrant=False)
    return loss


def _loss_of_block(
    queries: Tensor,
    ids: Tensor,
    weights: Tensor,
    num_pairs: int,
    pool: Tensor,
    pool_ids: Tensor,
    num_keys: int,
    tau: float,
) -> Tensor:
    similarity = (queries / tau) @ pool.T  # (R, B)
    same = ids[:, None] == pool_ids  # (R, B)
    # On a CPU, `where` takes a third of the time of `masked_fill`.
    negatives = torch.where(same, NO_NEGATIVE, similarity).logsumexp(dim=1)  # (R,)
    # Few of the R * S are pairs. Unlike `nonzero`, this does not wait until a GPU has counted them.
    row, positive = same[:, :num_keys].nonzero_static(size=num_pairs).unbind(1)
    return F.softplus(negatives[row] - similarity[row, positive]) @ weights[row]


@torch.no_grad()
def contrastive_statistics(pairs: Pairs, temperature: float) -> dict[str, Tensor]:
    """Numbers that tell a healthy run from a stuck one.

    Returns:
        `contrast_floor`: the loss at cosine 1 for all positives and 0 for all negatives,
        log(1 + K e^{-1/tau}) with K negatives per query; `cos_positive` and `cos_negative`:
        mean cosines of the pairs and of the queries with their negatives; `retrieval`: share of
        queries whose most similar target sample, background aside, has their id; `queries` and
        `instances`: how many online samples, and ids, have a pair. Scalars, 0 where undefined;
        float32 under autocast too.
    """
    with torch.autocast(pairs.pool.device.type, enabled=False):
        queries, ids = pairs.samples[pairs.rows], pairs.ids
        key, key_ids = pairs.pool[: pairs.num_keys], pairs.pool_ids[: pairs.num_keys]
        # A sum of cosines is a product with a sum; only the nearest sample needs every cosine.
        key_sums, _ = _sums_by_id(key, key_ids, ids)
        same_sums, num_same = _sums_by_id(pairs.pool, pairs.pool_ids, ids)
        num_negatives = len(pairs.pool) - num_same  # (R,)
        floor = F.softplus(num_negatives.log() - 1.0 / temperature)
        to_negatives = (queries * (pairs.pool.sum(dim=0) - same_sums)).sum(dim=1)
        found = queries.new_zeros(())
        for rows, row_ids, *_ in pairs.blocks() if len(ids) else ():
            similarity = pairs.samples[rows] @ key.T
            nearest = similarity.masked_fill(key_ids < 0, -2.0).argmax(dim=1)
            found = found + (key_ids[nearest] == row_ids).sum()
        count = max(1, len(ids))
        return {
            "contrast_floor": (floor * pairs.num_positives) @ pairs.weights,
            "cos_positive": (queries * key_sums).sum(dim=1) @ pairs.weights,
            "cos_negative": (to_negatives / num_negatives.clamp(min=1)).sum() / count,
            "retrieval": found / count,
            "queries": queries.new_tensor(float(len(ids))),
            "instances": queries.new_tensor(float(ids.unique().numel())),
        }


def _sums_by_id(samples: Tensor, sample_ids: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """For each of the `ids` (R,), all >= 0: sum (R, D) and number (R,) of the samples with it."""
    known, place_of_id = ids.unique(return_inverse=True)  # ascending
    place = torch.searchsorted(known, sample_ids)
    # The extra last row collects the samples that have none of the ids.
    found = F.pad(known, (0, 1), value=BACKGROUND)[place] == sample_ids
    place = torch.where(found, place, len(known))
    sums = samples.new_zeros(len(known) + 1, samples.shape[1]).index_add_(0, place, samples)
    counts = torch.bincount(place, minlength=len(known) + 1)
    return sums[place_of_id], counts[place_of_id]


def gather_from_other_ranks(samples: Tensor) -> Tensor:
    """The rows of all other ranks, (sum of their counts, D), detached; counts may differ."""
    mine = torch.full((1,), len(samples), device=samples.device)
    counts = torch.cat(gather(mine)).tolist()  # a GPU is waited for here only
    padded = F.pad(samples.detach(), (0, 0, 0, max(counts) - len(samples)))
    of_ranks = [rows[:count] for rows, count in zip(gather(padded), counts, strict=True)]
    of_ranks[dist.get_rank()] = samples.new_zeros(0, samples.shape[1])
    return torch.cat(of_ranks)


def gather(tensor: Tensor) -> list[Tensor]:
    """The tensor of each rank, all of one shape."""
    tensor = tensor.contiguous()
    gathered = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, tensor)
    return gathered
