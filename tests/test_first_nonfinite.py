"""The first value that is not finite is found at its line, forwards and backwards."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import nn

from aligndet.first_nonfinite import FirstNonFinite


class Root(nn.Module):
    """y = sqrt(w x): infinite in its gradient at 0, NaN below."""

    def forward(self, x):
        return x.sqrt()


class Task(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, 2.0]))
        self.root = Root()

    def forward(self, x):
        with torch.no_grad():
            far = torch.full((2,), torch.inf)  # a mark, as in models/assign.py
            nearest = torch.minimum(far, x.abs())
        return (self.root(self.weight * x) + nearest).sum()


def line_of(function, text):
    lines, first = inspect.getsourcelines(function)
    return first + next(number for number, line in enumerate(lines) if text in line)


def test_a_value_in_a_module():
    task = Task()
    with FirstNonFinite(task) as search:
        task(torch.tensor([1.0, -1.0])).backward()
    line = line_of(Root.forward, "sqrt")
    assert search.value.operation == "torch.Tensor.sqrt"
    assert search.value.line == f"tests/test_first_nonfinite.py:{line} in forward"
    assert search.value.module == "root"
    assert search.value.from_finite
    assert "in module root; its inputs are finite" in str(search.value)


def test_a_value_outside_all_modules():
    task = Task()
    with FirstNonFinite(task) as search:
        loss = task(torch.tensor([1.0, 1.0]))
        divided = loss / (loss - loss)
    assert torch.isinf(divided)
    assert search.value.line.endswith("test_a_value_outside_all_modules")
    assert search.value.module == ""
    assert "in module" not in str(search.value)


def test_a_function_that_writes_into_its_input():
    with FirstNonFinite(Task()) as search:
        torch.full((2,), 3e38).mul_(10.0)
    assert search.value.operation == "torch.Tensor.mul_"
    assert search.value.from_finite


def test_inputs_that_are_not_finite_themselves():
    """What no function has computed is seen where it is first used."""
    task = Task()
    with torch.no_grad():
        task.weight[1] = torch.nan
    with FirstNonFinite(task) as search:
        task(torch.tensor([1.0, 1.0]))
    assert search.value.operation == "torch.Tensor.mul"
    assert not search.value.from_finite
    assert "not finite either" in str(search.value)


def test_an_infinity_without_gradients():
    """As in the target branch, whose NaN would come only later."""
    task = Task()
    with torch.no_grad(), FirstNonFinite(task) as search:
        huge = torch.full((2,), 3e38)
        sums = huge + huge
        assert torch.isnan(sums - sums).all()
    line = line_of(test_an_infinity_without_gradients, "huge + huge")
    assert search.value.line.startswith(f"tests/test_first_nonfinite.py:{line} in ")
    assert search.value.from_finite


def test_a_gradient():
    """The square root's is infinite at 0, so the first to receive it is its input, the product."""
    task = Task()
    with FirstNonFinite(task) as search:
        task(torch.tensor([1.0, 0.0])).backward()
    assert search.value is None
    line = line_of(Task.forward, "self.weight * x")
    assert search.gradient.line == f"tests/test_first_nonfinite.py:{line} in forward"
    assert search.gradient.operation == "torch.Tensor.mul"


@pytest.mark.parametrize("x", [[1.0, 3.0], [0.5, 0.25]])
def test_nothing_to_find(x):
    """Neither the mark without gradients, nor memory that is not written yet."""
    task = Task()
    with FirstNonFinite(task) as search:
        unwritten = torch.empty(2)
        unwritten[:] = torch.tensor(x)
        task(unwritten).backward()
    assert search.value is None
    assert search.gradient is None
    assert not task._forward_hooks
    assert not task.root._forward_pre_hooks
