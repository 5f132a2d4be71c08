import math

import pytest
import torch
import torch.nn.functional as F
from torchvision.ops import sigmoid_focal_loss as torchvision_focal

from losses.focal import one_hot, sigmoid_focal_loss


@pytest.mark.parametrize("alpha", [0.25, 0.5, -1])
@pytest.mark.parametrize("gamma", [0.0, 1.5, 2.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bool])
def test_value_and_gradient_are_torchvisions(alpha, gamma, dtype):
    torch.manual_seed(0)
    logits = (torch.randn(3, 50, 7) * 4).requires_grad_()
    copy = logits.detach().clone().requires_grad_()
    targets = torch.rand(3, 50, 7) < 0.2
    loss = sigmoid_focal_loss(logits, targets.to(dtype), alpha, gamma, 13.0)
    reference = torchvision_focal(copy, targets.float(), alpha, gamma, reduction="sum") / 13
    loss.backward()
    reference.backward()
    assert loss.shape == ()
    torch.testing.assert_close(loss, reference, rtol=1e-5, atol=0)
    torch.testing.assert_close(logits.grad, copy.grad, rtol=1e-4, atol=1e-6)


def test_by_hand():
    logits = torch.tensor([0.0, 0.0])
    expected = 0.25 * 0.25 * math.log(2) + 0.75 * 0.25 * math.log(2)
    loss = sigmoid_focal_loss(logits, torch.tensor([1, 0]), 0.25, 2.0, 1.0)
    assert loss.item() == pytest.approx(expected)


def test_gamma_0_without_weights_is_cross_entropy():
    logits, targets = torch.randn(20), (torch.rand(20) < 0.5).float()
    loss = sigmoid_focal_loss(logits, targets, -1, 0.0, 1.0)
    reference = F.binary_cross_entropy_with_logits(logits, targets, reduction="sum")
    torch.testing.assert_close(loss, reference)


def test_extreme_logits_are_finite():
    logits = torch.tensor([1e4, -1e4, 1e4, -1e4], requires_grad=True)
    loss = sigmoid_focal_loss(logits, torch.tensor([1, 0, 0, 1]), 0.25, 2.0, 1.0)
    loss.backward()
    assert loss.item() == pytest.approx(1e4 * (0.75 + 0.25))
    assert logits.grad.isfinite().all()


def test_half_precision_is_summed_in_float32():
    logits = torch.zeros(100_000, dtype=torch.bfloat16)
    loss = sigmoid_focal_loss(logits, torch.zeros(100_000), -1, 0.0, 1.0)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(100_000 * math.log(2), rel=1e-4)


def test_empty_is_zero_and_attached():
    logits = torch.zeros(2, 0, 5, requires_grad=True)
    loss = sigmoid_focal_loss(logits, torch.zeros(2, 0, 5), 0.25, 2.0, 1.0)
    loss.backward()
    assert loss.item() == 0
    assert logits.grad.shape == (2, 0, 5)


def test_one_hot_by_hand():
    targets = one_hot(torch.tensor([[2, -1], [-2, 0]]), 3)
    assert targets.dtype == torch.bool
    assert targets.int().tolist() == [[[0, 0, 1], [0, 0, 0]], [[0, 0, 0], [1, 0, 0]]]
    assert one_hot(torch.zeros(0, dtype=torch.int64), 3).shape == (0, 3)
