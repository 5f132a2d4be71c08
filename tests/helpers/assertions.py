"""Checks that several test files share."""

from __future__ import annotations

import torch
from scipy.optimize import linear_sum_assignment


def assert_clean(error, path, *words):
    """The error is one line that names the file and holds the words."""
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


def same_detections(found, expected, at_least):
    """Two detectors find the same in each image, in float64; equal scores may be in either order.

    A hundred roundings of 2e-16, of boxes of a few hundred pixels, are far below 1e-8.
    """
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert len(ours["labels"]) == len(theirs["labels"]) > at_least
        assert len(theirs["labels"].unique()) > 1
        assert theirs["scores"].std() > 0.01
        torch.testing.assert_close(ours["scores"], theirs["scores"], rtol=0, atol=1e-8)
        same = theirs["labels"][:, None] == ours["labels"]  # (D, D)
        same &= (theirs["boxes"][:, None] - ours["boxes"]).abs().amax(dim=2) <= 1e-8
        same &= (theirs["scores"][:, None] - ours["scores"]).abs() <= 1e-8
        assert same[linear_sum_assignment(~same)].all()  # one of ours for each of theirs
