"""The contrastive loss against a slow loop transcribed from the equation, and its corner cases."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from losses import contrastive
from losses.contrastive import (
    contrastive_statistics,
    find_pairs,
    instance_contrastive_loss,
    occurrences,
)


def slow_loss(query, key, query_ids, key_ids, tau):
    """Equation by equation: one -log(e^s / (e^s + sum of negatives)) per pair."""
    terms: dict[int, list[torch.Tensor]] = {}
    everything, all_ids = torch.cat([key, query.detach()]), torch.cat([key_ids, query_ids])
    for i, y in enumerate(query_ids.tolist()):
        for j, z in enumerate(key_ids.tolist()):
            if y < 0 or y != z:
                continue
            positive = torch.exp(query[i] @ key[j] / tau)
            negative = sum(torch.exp(everything[all_ids != y] @ query[i] / tau))
            terms.setdefault(y, []).append(-torch.log(positive / (positive + negative)))
    if not terms:
        return query.sum() * 0
    return torch.stack([torch.stack(t).mean() for t in terms.values()]).mean()


def samples(ids_q, ids_k, width=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    query = F.normalize(torch.randn(len(ids_q), width, generator=generator), dim=1)
    key = F.normalize(torch.randn(len(ids_k), width, generator=generator), dim=1)
    return query.requires_grad_(), key, torch.tensor(ids_q), torch.tensor(ids_k)


CASES = {
    "plain": ([0, 0, 1, 2, -1], [0, 1, 1, 2, 2, -1, -1]),
    "one view only": ([0, 3, 3, -1, 5], [0, 4, 4, 5, 5, -1]),
    "id 256 is not background": ([255, 256, 256, 300, -1], [256, 300, 255, 255, -1]),
    "without background": ([0, 1], [1, 0]),
    "without negatives": ([0, 0], [0, 0, 0]),
    "ids of any size": ([2**62, 7, -1, 2**40, 7], [7, 2**40, -1, 2**62, 2**62]),
}


@pytest.mark.usefixtures("double_precision")
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("tau", [0.1, 0.5])
def test_equals_the_equation(name, tau):
    query, key, query_ids, key_ids = samples(*CASES[name])
    loss = instance_contrastive_loss(query, key, query_ids, key_ids, tau)
    (gradient,) = torch.autograd.grad(loss, query)
    expected = slow_loss(query, key, query_ids, key_ids, tau)
    (expected_gradient,) = torch.autograd.grad(expected, query)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient, expected_gradient)


@pytest.mark.usefixtures("double_precision")
def test_equals_the_equation_with_more_than_256_instances(monkeypatch):
    monkeypatch.setattr(contrastive, "ENTRIES_AT_ONCE", 64 * 604)  # several blocks, recomputed
    query, key, query_ids, key_ids = samples([*range(300), -1, -1], [*range(299, 0, -1), 7, -1])
    loss = instance_contrastive_loss(query, key, query_ids, key_ids, 0.5)
    (gradient,) = torch.autograd.grad(loss, query)
    expected = slow_loss(query, key, query_ids, key_ids, 0.5)
    (expected_gradient,) = torch.autograd.grad(expected, query)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient, expected_gradient, atol=1e-12, rtol=1e-9)


def test_occurrences_by_hand():
    ids, among = torch.tensor([5, -1, 2**50, 0]), torch.tensor([0, 5, -1, 5, 2**50, 5])
    assert occurrences(ids, among).tolist() == [3, 1, 1, 1]
    assert occurrences(ids, among[:0]).tolist() == [0, 0, 0, 0]
    assert occurrences(ids[:0], among).shape == (0,)


def test_many_samples_of_an_id_count_as_one_id():
    """Each of 1,000 ids has 49 samples: their 49ths add up to 1,000 exactly."""
    ids = torch.arange(1000).repeat_interleave(49)
    pairs = find_pairs(torch.zeros(len(ids), 1), torch.zeros(1000, 1), ids, torch.arange(1000))
    assert (pairs.weights == 1 / torch.tensor(49.0 * 1000)).all()


@pytest.mark.parametrize(
    ("ids_q", "ids_k"), [([-1, -1], [-1]), ([], []), ([0, 1], []), ([], [0]), ([0], [1])]
)
def test_without_any_pair_the_loss_is_an_attached_zero(ids_q, ids_k):
    query, key, query_ids, key_ids = samples(ids_q, ids_k)
    query_ids, key_ids = query_ids.long(), key_ids.long()
    loss = instance_contrastive_loss(query, key, query_ids, key_ids, 0.5)
    (gradient,) = torch.autograd.grad(loss, query)
    assert loss.item() == 0.0
    assert torch.equal(gradient, torch.zeros_like(query))
    statistics = contrastive_statistics(find_pairs(query, key, query_ids, key_ids), 0.5)
    assert all(math.isfinite(value) for value in statistics.values())


def test_no_gradient_flows_into_the_target_or_into_negatives():
    query, key, query_ids, key_ids = samples([0, -1], [0, 1])
    key.requires_grad_()
    instance_contrastive_loss(query, key, query_ids, key_ids, 0.5).backward()
    assert key.grad is None
    assert query.grad[0].abs().sum() > 0
    assert query.grad[1].abs().sum() == 0


def test_statistics_of_a_perfect_embedding_by_hand():
    directions = torch.eye(4)
    query_ids, key_ids = torch.tensor([0, 1, 2, -1]), torch.tensor([2, 1, 0, -1])
    query, key = directions, directions[[2, 1, 0, 3]]
    loss = instance_contrastive_loss(query, key, query_ids, key_ids, 0.5)
    statistics = contrastive_statistics(find_pairs(query, key, query_ids, key_ids), 0.5)
    # Every query has 8 samples in the pool: two have its id, six are orthogonal negatives.
    assert statistics["contrast_floor"].item() == pytest.approx(math.log(1 + 6 * math.exp(-2)))
    assert loss.item() == pytest.approx(statistics["contrast_floor"].item(), abs=1e-6)
    assert statistics["cos_positive"].item() == pytest.approx(1.0)
    assert statistics["cos_negative"].item() == pytest.approx(0.0)
    assert statistics["retrieval"].item() == 1.0
    assert (statistics["queries"].item(), statistics["instances"].item()) == (3.0, 3.0)


@pytest.mark.usefixtures("double_precision")
@pytest.mark.parametrize("name", CASES)
def test_statistics_equal_a_slow_loop(name, monkeypatch):
    monkeypatch.setattr(contrastive, "ENTRIES_AT_ONCE", 20)  # several blocks
    query, key, query_ids, key_ids = (tensor.detach() for tensor in samples(*CASES[name]))
    pool, pool_ids = torch.cat([key, query]), torch.cat([key_ids, query_ids])
    positive: dict[int, list[float]] = {}
    negative, found = [], []
    for sample, y in zip(query, query_ids.tolist(), strict=True):
        if y < 0 or y not in key_ids.tolist():
            continue
        positive.setdefault(y, []).extend((key[key_ids == y] @ sample).tolist())
        others = pool[pool_ids != y] @ sample
        negative.append(others.mean().item() if len(others) else 0.0)
        instances = key_ids >= 0
        found.append(key_ids[instances][(key[instances] @ sample).argmax()].item() == y)
    statistics = contrastive_statistics(find_pairs(query, key, query_ids, key_ids), 0.5)
    means = [sum(cosines) / len(cosines) for cosines in positive.values()]
    assert statistics["cos_positive"].item() == pytest.approx(sum(means) / len(means), abs=1e-6)
    assert statistics["cos_negative"].item() == pytest.approx(
        sum(negative) / len(negative), abs=1e-6
    )
    assert statistics["retrieval"].item() == pytest.approx(sum(found) / len(found))
    assert statistics["queries"].item() == len(found)
    assert statistics["instances"].item() == len(positive)


def test_retrieval_counts_the_nearest_target_of_any_instance():
    query = F.normalize(torch.tensor([[1.0, 0.1], [0.1, 1.0], [1.0, 0.2]]), dim=1)
    key = torch.eye(2)
    pairs = find_pairs(query, key, torch.tensor([0, 1, 1]), torch.tensor([0, 1]))
    statistics = contrastive_statistics(pairs, 0.5)
    assert statistics["retrieval"].item() == pytest.approx(2 / 3)


def test_bf16_inputs_under_autocast_are_computed_in_float32():
    query, key, query_ids, key_ids = samples(*CASES["plain"])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = instance_contrastive_loss(query, key, query_ids, key_ids, 0.5)
    torch.testing.assert_close(loss, slow_loss(query, key, query_ids, key_ids, 0.5))


def test_statistics_under_autocast_are_computed_in_float32():
    """In bf16, the floor and the cosines would be rounded to steps of 0.016."""
    pairs = find_pairs(*samples(*CASES["plain"]))
    expected = contrastive_statistics(pairs, 0.5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        statistics = contrastive_statistics(pairs, 0.5)
    for name, value in statistics.items():
        assert value.dtype == torch.float32, name
        assert torch.equal(value, expected[name]), name
