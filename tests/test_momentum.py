"""The target's moving average: schedule and update by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from aligndet.momentum import momentum_at, update_target


@pytest.mark.parametrize(
    ("step", "expected"),
    [(0, 0.996), (25, 0.996585786), (50, 0.998), (75, 0.999414214), (100, 1.0)],
)
def test_momentum_rises_along_half_a_cosine(step, expected):
    assert momentum_at(step, 100) == pytest.approx(expected, abs=1e-9)


def test_base_momentum():
    assert momentum_at(0, 8, base=0.5) == 0.5
    assert momentum_at(4, 8, base=0.5) == pytest.approx(0.75)
    assert momentum_at(3, 8, base=1.0) == 1.0


def test_update_by_hand():
    target, online = nn.Linear(2, 1), nn.Linear(2, 1)
    with torch.no_grad():
        target.weight.copy_(torch.tensor([[1.0, -2.0]]))
        target.bias.fill_(4.0)
        online.weight.copy_(torch.tensor([[3.0, 2.0]]))
        online.bias.fill_(0.0)
    update_target(target, online, 0.75)
    torch.testing.assert_close(target.weight, torch.tensor([[1.5, -1.0]]))
    torch.testing.assert_close(target.bias, torch.tensor([3.0]))
    assert online.weight.tolist() == [[3.0, 2.0]]


def test_the_ends_of_the_range_keep_or_copy():
    target, online = nn.Linear(3, 3), nn.Linear(3, 3)
    before = target.weight.clone()
    update_target(target, online, 1.0)
    assert torch.equal(target.weight, before)
    update_target(target, online, 0.0)
    torch.testing.assert_close(target.weight, online.weight)


def test_buffers_are_copied():
    target, online = nn.BatchNorm2d(2), nn.BatchNorm2d(2)
    online(torch.randn(4, 2, 3, 3))
    update_target(target, online, 0.99)
    assert torch.equal(target.running_var, online.running_var)
    assert target.num_batches_tracked.item() == 1


def test_different_modules_are_refused():
    with pytest.raises(ValueError, match="differ in their parameters"):
        update_target(nn.Linear(2, 2), nn.Linear(2, 2, bias=False), 0.9)
