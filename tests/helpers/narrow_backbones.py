"""Backbones that are small enough for tests, in the places of swin_t and resnet18."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from unittest import mock

from models.backbone import BACKBONES
from models.resnet import ResNet
from models.swin import SwinConfig, SwinTransformer

# Without stochastic depth.
NARROW = SwinConfig("swin_t", 24, (2, 2, 2, 2), (1, 2, 4, 8), drop=0.0)


@contextlib.contextmanager
def narrow_backbones() -> Iterator[None]:
    """`model.backbone=swin_t` and `resnet18` are the narrow ones within the block."""
    narrow = {"swin_t": lambda: SwinTransformer(NARROW), "resnet18": partial(ResNet, 18, width=16)}
    with mock.patch.dict(BACKBONES, narrow):
        yield
