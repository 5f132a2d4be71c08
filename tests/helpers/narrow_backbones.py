"""Backbones that are small enough for tests, in the places of swin_t and resnet18."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from functools import partial
from unittest import mock

from models.swin import SwinConfig

# Without stochastic depth.
NARROW = SwinConfig("swin_t", 24, (2, 2, 2, 2), (1, 2, 4, 8), drop=0.0)


@contextlib.contextmanager
def narrow_backbones() -> Iterator[None]:
    """`model.backbone=swin_t` and `resnet18` are the narrow ones within the block."""
    now = importlib.import_module("models.backbone")  # another one within `edited_product`
    narrow = {
        "swin_t": lambda: now.SwinTransformer(NARROW),
        "resnet18": partial(now.ResNet, 18, width=16),
    }
    with mock.patch.dict(now.BACKBONES, narrow):
        yield
