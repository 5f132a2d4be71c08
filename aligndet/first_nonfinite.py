"""Finds the first value that is not finite, in a forward pass and in its backward pass.

with FirstNonFinite(task) as search:
    loss = ...
    loss.backward()
print(search.value or search.gradient)
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, resolve_name

ROOT = Path(__file__).resolve().parent.parent
UNINITIALISED = ("empty", "new_empty")  # their results may hold anything
MARKS = ("full", "new_full", "masked_fill", "fill", "where", "tensor", "new_tensor")


class Place(NamedTuple):
    """Where a value was computed."""

    operation: str
    line: str  # of our code, `FILE:LINE in FUNCTION`
    module: str  # the innermost one at work; empty outside all modules
    from_finite: bool  # whether its inputs were finite

    def __str__(self) -> str:
        module = f", in module {self.module}" if self.module else ""
        inputs = "finite" if self.from_finite else "not finite either"
        return f"the result of {self.operation} at {self.line}{module}; its inputs are {inputs}"


class FirstNonFinite(TorchFunctionMode):
    """While it is open, watches all that PyTorch computes.

    NaN always counts. Infinity does if gradients flow, or if it is computed from finite values;
    else it is a mark that was set on purpose (`models/assign.py`).

    Args:
        task: names the modules.
    """

    def __init__(self, task: nn.Module) -> None:
        super().__init__()
        self.value: Place | None = None  # the first result that is not finite
        self.gradient: Place | None = None  # the first result whose gradient is not finite
        self._task, self._active, self._hooks = task, [""], []

    def __enter__(self) -> FirstNonFinite:
        for name, module in self._task.named_modules():
            self._hooks.append(module.register_forward_pre_hook(self._entering(name)))
            self._hooks.append(module.register_forward_hook(self._leaving, always_call=True))
        return super().__enter__()

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        for hook in self._hooks:
            hook.remove()

    def _entering(self, name: str) -> Callable[[nn.Module, Any], None]:
        return lambda module, args: self._active.append(name)

    def _leaving(self, module: nn.Module, args: Any, output: Any) -> None:
        self._active.pop()

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Call the function and look at its result."""
        from_finite = _finite((args, kwargs))  # before it may write into its inputs
        result = function(*args, **(kwargs or {}))
        name = getattr(function, "__name__", "")
        if self.value is None and not name.startswith(UNINITIALISED):
            operation = resolve_name(function) or name
            place = Place(operation, _our_line(), self._active[-1], from_finite)
            for tensor in _floats(result):
                if not _finite(tensor):
                    derived = from_finite and not name.startswith(MARKS)
                    if tensor.requires_grad or derived or torch.isnan(tensor).any():
                        self.value = self.value or place
                elif tensor.requires_grad and not tensor.is_leaf:
                    self._watch_gradient(tensor, place)
        return result

    def _watch_gradient(self, tensor: Tensor, place: Place) -> None:
        def look(gradient: Tensor) -> None:
            if self.gradient is None and not _finite(gradient):
                self.gradient = place

        tensor.register_hook(look)


def _finite(value: Any) -> bool:
    return all(bool(torch.isfinite(tensor).all()) for tensor in _floats(value))


def _floats(value: Any) -> Iterator[Tensor]:
    """All floating-point tensors in nested containers."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, dict):
        yield from _floats(list(value.values()))
    elif isinstance(value, (list, tuple)):
        for entry in value:
            yield from _floats(entry)


def _our_line() -> str:
    """The innermost line of this project's code that is being run, this file aside."""
    frame = sys._getframe(1)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        ours = path.is_relative_to(ROOT) and "site-packages" not in path.parts
        if ours and path != Path(__file__):
            name = path.relative_to(ROOT).as_posix()
            return f"{name}:{frame.f_lineno} in {frame.f_code.co_name}"
        frame = frame.f_back
    return "an unknown line"
