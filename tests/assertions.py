"""Checks that several test files make."""

from __future__ import annotations


def assert_clean(error, path, *words):
    """One line that names the file and holds the words."""
    message = str(error.value)
    assert str(path) in message
    assert "\n" not in message
    for word in words:
        assert word in message


def assert_finite_gradients(model):
    """Every trained parameter has a gradient, so that DDP can reduce it, and it is finite."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
