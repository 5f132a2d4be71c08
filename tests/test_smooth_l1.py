import pytest
import torch
import torch.nn.functional as F

from losses.smooth_l1 import smooth_l1_loss


def test_by_hand():
    pred = torch.tensor([1.0, -0.5, 3.0, 0.0])
    assert smooth_l1_loss(pred, torch.zeros(4)).item() == 4.5
    assert smooth_l1_loss(pred, torch.zeros(4), beta=1.0).item() == 0.5 + 0.125 + 2.5
    assert smooth_l1_loss(pred, torch.zeros(4), beta=2.0, normalizer=2.0).item() == pytest.approx(
        (0.25 + 0.0625 + 2.0) / 2
    )


@pytest.mark.parametrize("beta", [0.0, 1 / 9, 1.0])
def test_equals_torch(beta):
    torch.manual_seed(0)
    pred, target = torch.randn(50, 4, requires_grad=True), torch.randn(50, 4)
    loss = smooth_l1_loss(pred, target, beta, normalizer=torch.tensor(7.0))
    expected = F.smooth_l1_loss(pred, target, beta=beta, reduction="sum") / 7
    torch.testing.assert_close(loss, expected)
    (gradient,) = torch.autograd.grad(loss, pred)
    (reference,) = torch.autograd.grad(expected, pred)
    torch.testing.assert_close(gradient, reference)


@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_empty_input_gives_a_zero_attached_to_the_graph(beta):
    pred = torch.zeros(0, 4, requires_grad=True)
    loss = smooth_l1_loss(pred, torch.zeros(0, 4), beta)
    assert loss == 0
    loss.backward()
    assert pred.grad.shape == (0, 4)


def test_half_precision_is_summed_in_float32():
    pred = torch.ones(4096, dtype=torch.bfloat16)
    loss = smooth_l1_loss(pred, torch.zeros(4096, dtype=torch.bfloat16))
    assert loss.dtype == torch.float32
    assert loss.item() == 4096
