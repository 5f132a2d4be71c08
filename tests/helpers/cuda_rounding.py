"""Where CUDA's kernels may give other numbers than a CPU's: everything else runs as it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torchvision.ops  # noqa: F401 (registers its nms)
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten


def divide(values: Tensor, number: Any, **_: Any) -> Tensor:
    """A number of Python divides as a product with its reciprocal."""
    if isinstance(number, Tensor) or not values.is_floating_point():
        return aten.div.Tensor(values, number)
    return values * (torch.ones((), dtype=values.dtype) / number)


def divide_(values: Tensor, number: Any) -> Tensor:
    return values.copy_(divide(values, number))


def mean(values: Tensor, dims: list[int], keepdim: bool = False, **_: Any) -> Tensor:
    """A sum times the reciprocal of the count."""
    total = add_up(values, dims, keepdim)
    return total * (torch.ones(()) / (values.numel() // total.numel()))


def add_up(values: Tensor, dims: list[int], keepdim: bool = False, **options: Any) -> Tensor:
    """In another order."""
    return aten.sum.dim_IntList(values.flip(dims or []), dims, keepdim, **options)


def multiply(values: Tensor, dim: int, keepdim: bool = False) -> Tensor:
    return aten.prod.dim_int(values.flip(dim), dim, keepdim)


def add_at_(values: Tensor, dim: int, index: Tensor, source: Tensor) -> Tensor:
    """Threads add in any order."""
    return aten.index_add_(values, dim, index.flip(0), source.flip(dim))


def write_at_(values: Tensor, dim: int, index: Tensor, source: Tensor) -> Tensor:
    """Of several that write to one place, any may be the last."""
    return aten.index_copy_(values, dim, index.flip(0), source.flip(dim))


def put_(values: Tensor, indices: list[Tensor], source: Tensor, *more: bool) -> Tensor:
    if len(indices) == 1 and indices[0].dtype == torch.int64 and indices[0].dim() == 1:
        flipped = source.flip(0) if source.dim() else source
        return aten.index_put_(values, [indices[0].flip(0)], flipped, *more)
    return aten.index_put_(values, indices, source, *more)


def sort(values: Tensor, dim: int = -1, descending: bool = False) -> tuple[Tensor, Tensor]:
    """Equal values end up in any order, unless the sort is stable."""
    ordered, order = aten.sort.stable(values.flip(dim), stable=True, descending=descending)
    return ordered, values.shape[dim] - 1 - order


def root(values: Tensor) -> Tensor:
    """Rounded correctly; that of a CPU may be off by a bit."""
    return aten.sqrt.default(values.double()).to(values.dtype)


def nms(boxes: Tensor, scores: Tensor, iou: float) -> Tensor:
    """The threshold is a float32."""
    return torch.ops.torchvision.nms.default(boxes, scores, torch.tensor(iou).item())


def refuse(*_: Any, **__: Any) -> Tensor:
    raise AssertionError("CUDA interpolates with another rounding: resize on the CPU")


RULES: dict[Any, Callable[..., Any]] = {
    aten.div.Tensor: divide,
    aten.div_.Tensor: divide_,
    aten.mean.dim: mean,
    aten.sum.dim_IntList: add_up,
    aten.prod.dim_int: multiply,
    aten.index_add_.default: add_at_,
    aten.index_copy_.default: write_at_,
    aten.index_put_.default: put_,
    aten.sort.default: sort,
    aten.sqrt.default: root,
    aten._upsample_bilinear2d_aa.default: refuse,
    torch.ops.torchvision.nms.default: nms,
}


class CudaRounding(TorchDispatchMode):
    """While it is entered, operations on a CPU give what they may give on CUDA."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        rule = RULES.get(func, func)
        return rule(*args, **(kwargs or {}))
