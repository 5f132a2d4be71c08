"""InfoNCE against MoCo's pseudocode, written out slowly in NumPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from losses.info_nce import info_nce_logits, info_nce_loss


def unit_vectors(rows, width, seed):
    values = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))
    return F.normalize(values, dim=1)


def slow_loss(query, key, queue, temperature):
    """Algorithm 1 of MoCo: one positive and Q negatives per image, the target is class 0."""
    losses = []
    for q, k in zip(query.numpy(), key.numpy(), strict=True):
        logits = [np.dot(q, k) / temperature]
        for negative in queue.numpy():
            logits.append(np.dot(q, negative) / temperature)
        probability = np.exp(logits[0]) / np.sum(np.exp(logits))
        losses.append(-np.log(probability))
    return np.mean(losses)


@pytest.mark.parametrize("temperature", [0.07, 0.2, 1.0])
def test_equals_the_pseudocode(temperature):
    query, key, queue = (unit_vectors(rows, 16, seed) for seed, rows in enumerate((5, 5, 33)))
    logits = info_nce_logits(query, key, queue, temperature)
    assert logits.shape == (5, 34)
    expected = slow_loss(query.double(), key.double(), queue.double(), temperature)
    assert info_nce_loss(logits).item() == pytest.approx(expected, rel=1e-5)
    labels = torch.zeros(5, dtype=torch.int64)
    torch.testing.assert_close(info_nce_loss(logits), F.cross_entropy(logits, labels))


def test_by_hand():
    query = torch.tensor([[1.0, 0.0]])
    queue = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
    loss = info_nce_loss(info_nce_logits(query, query, queue, temperature=0.5))
    # Similarities 1, 0 and -1 over 0.5.
    expected = -math.log(math.exp(2) / (math.exp(2) + 1 + math.exp(-2)))
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_equal_similarities_give_the_logarithm_of_the_choices():
    same = torch.ones(3, 4) / 2
    assert info_nce_loss(info_nce_logits(same, same, same, 0.2)).item() == pytest.approx(
        math.log(4)
    )


def test_gradients_reach_the_query_only():
    query, key, queue = (unit_vectors(rows, 8, rows).requires_grad_() for rows in (2, 2, 6))
    info_nce_loss(info_nce_logits(query, key, queue, 0.2)).backward()
    assert query.grad.abs().sum() > 0
    assert key.grad is None
    assert queue.grad is None


def test_half_precision_does_not_reach_the_logits():
    query, queue = unit_vectors(2, 64, 0), unit_vectors(9, 64, 1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = info_nce_logits(query.bfloat16(), query.bfloat16(), queue, 0.2)
    assert logits.dtype == torch.float32
    exact = query.bfloat16().float() @ queue.T / 0.2
    torch.testing.assert_close(logits[:, 1:], exact)
