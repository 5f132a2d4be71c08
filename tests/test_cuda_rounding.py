"""The stand-in for CUDA's rounding sees what it is for."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional
from torchvision.ops import nms

from tests.helpers.cuda_rounding import CudaRounding

VALUES = torch.rand(3, 500, generator=torch.Generator().manual_seed(0))
PLACES = torch.arange(500) % 7


def with_ties(values):
    return (values * 10).round()


DIFFERENT = {
    "division by a number": lambda: VALUES / 1.089,
    "mean": lambda: VALUES.mean(dim=0),
    "order of a sum": lambda: VALUES.sum(dim=1),
    "order of a product": lambda: (VALUES + 0.5).prod(dim=1),
    "order of additions": lambda: torch.zeros(7).index_add_(0, PLACES, VALUES[0]),
    "several writers": lambda: torch.zeros(7).index_copy_(0, PLACES, VALUES[0]),
    "several writers by []": lambda: torch.zeros(7).index_put_((PLACES,), VALUES[0]),
    "ties of an argsort": lambda: with_ties(VALUES[0]).argsort(),
    "threshold of nms": lambda: nms(
        torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 8]]), torch.tensor([2.0, 1]), 0.8
    ),
}  # fmt: skip
EQUAL = {
    "division by a power of two": lambda: VALUES / 8,
    "division by a tensor": lambda: VALUES / VALUES.new_full((), 1.089),
    "sum of multiples": lambda: ((VALUES * 64).round() / 64).sum(dim=1),
    "maximum": lambda: VALUES.amax(dim=1),
    "stable argsort": lambda: with_ties(VALUES[0]).argsort(stable=True),
    "root in float64": lambda: VALUES.double().sqrt().float(),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_it_sees(name):
    expected = DIFFERENT[name]()
    with CudaRounding():
        found = DIFFERENT[name]()
    assert not torch.equal(found, expected)


@pytest.mark.parametrize("name", EQUAL)
def test_it_leaves_alone(name):
    expected = EQUAL[name]()
    with CudaRounding():
        found = EQUAL[name]()
    assert torch.equal(found, expected)


def test_it_refuses_to_resize():
    with CudaRounding(), pytest.raises(AssertionError, match="resize on the CPU"):
        functional.interpolate(VALUES.view(1, 1, 30, 50), (9, 9), mode="bilinear", antialias=True)
