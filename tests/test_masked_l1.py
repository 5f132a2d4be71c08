"""The loss of masked image modelling against a loop, and by hand."""

from __future__ import annotations

import pytest
import torch

from losses.masked_l1 import masked_l1_loss


def slow_loss(prediction, images, hidden):
    """The equation, value by value."""
    total, count = 0.0, 0
    for n in range(len(images)):
        for y, x in hidden[n].nonzero().tolist():
            for c in range(images.shape[1]):
                total += abs(prediction[n, c, y, x].item() - images[n, c, y, x].item())
                count += 1
    return total / max(count, 1)


def test_it_is_the_equation():
    torch.manual_seed(0)
    prediction, images = torch.randn(2, 3, 4, 5).double(), torch.randn(2, 3, 4, 5).double()
    hidden = torch.rand(2, 4, 5) < 0.4
    loss = masked_l1_loss(prediction, images, hidden)
    assert loss.dtype == torch.float64
    assert loss.item() == pytest.approx(slow_loss(prediction, images, hidden), rel=1e-12)


def test_the_gradient_is_the_sign_of_the_error_over_the_hidden_values():
    prediction = torch.tensor([[[[1.0, 5.0], [2.0, -3.0]]]], requires_grad=True)
    images = torch.zeros(1, 1, 2, 2, requires_grad=True)
    hidden = torch.tensor([[[True, False], [False, True]]])
    loss = masked_l1_loss(prediction, images, hidden)
    loss.backward()
    assert loss.item() == 2.0  # (1 + 3) / 2
    assert prediction.grad.tolist() == [[[[0.5, 0.0], [0.0, -0.5]]]]
    assert images.grad is None


def test_nothing_hidden_is_a_zero_with_a_graph():
    prediction = torch.ones(1, 3, 2, 2, requires_grad=True)
    loss = masked_l1_loss(prediction, torch.zeros(1, 3, 2, 2), torch.zeros(1, 2, 2).bool())
    loss.backward()
    assert loss.item() == 0.0
    assert prediction.grad.abs().sum() == 0


def test_half_precision_is_summed_in_float32():
    prediction = torch.full((1, 3, 64, 64), 1 + 2**-7, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        loss = masked_l1_loss(prediction, torch.zeros(1, 3, 64, 64), torch.ones(1, 64, 64).bool())
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(1 + 2**-7, rel=1e-6)
