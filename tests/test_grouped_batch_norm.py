"""BatchNorm in groups against one plain BatchNorm per group."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from models.grouped_batch_norm import GroupedBatchNorm2d
from tests.helpers.random_norms import randomise_norm


def norm_of(groups):
    norm = GroupedBatchNorm2d(5, groups)
    randomise_norm(norm)
    return norm


@pytest.mark.usefixtures("double_precision")  # a gradient of BatchNorm is a small difference
def test_each_group_is_normalised_separately():
    x = torch.randn(6, 5, 4, 3, requires_grad=True)
    grouped = norm_of(3)
    plain = nn.BatchNorm2d(5)
    plain.load_state_dict(grouped.state_dict())
    copies = [copy.deepcopy(plain) for _ in range(3)]
    weights = torch.randn(6, 5, 4, 3)  # without them the gradient would be 0
    expected = torch.cat([norm(part) for norm, part in zip(copies, x.chunk(3), strict=True)])
    (expected_gradient,) = torch.autograd.grad((expected * weights).sum(), x)
    result = grouped(x)
    (gradient,) = torch.autograd.grad((result * weights).sum(), x)
    torch.testing.assert_close(result, expected)
    torch.testing.assert_close(gradient, expected_gradient)
    for name in ("running_mean", "running_var"):
        mean = torch.stack([getattr(norm, name) for norm in copies]).mean(dim=0)
        torch.testing.assert_close(getattr(grouped, name), mean)
    assert grouped.num_batches_tracked == 1
    assert not torch.allclose(result, copy.deepcopy(plain)(x), atol=0.1)  # groups matter


@pytest.mark.parametrize("groups", [1, 4])
def test_evaluation_equals_plain_batch_norm(groups):
    grouped = norm_of(groups).eval()
    plain = nn.BatchNorm2d(5).eval()
    plain.load_state_dict(grouped.state_dict())
    x = torch.randn(3, 5, 2, 2)  # not a multiple of four
    assert torch.equal(grouped(x), plain(x))


def test_one_group_is_plain_batch_norm():
    grouped, plain = GroupedBatchNorm2d(5), nn.BatchNorm2d(5)
    x = torch.randn(3, 5, 2, 2)
    assert torch.equal(grouped(x), plain(x))
    assert all(map(torch.equal, grouped.state_dict().values(), plain.state_dict().values()))


def test_a_batch_that_cannot_be_split():
    with pytest.raises(ValueError, match="batch of 6 cannot be split into 4 equal groups"):
        norm_of(4)(torch.randn(6, 5, 2, 2))
