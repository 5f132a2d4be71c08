"""A Swin that is small enough for tests, without stochastic depth, in the place of swin_t."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from unittest import mock

from models.backbone import BACKBONES
from models.swin import SwinConfig, SwinTransformer

NARROW = SwinConfig("swin_t", 24, (2, 2, 2, 2), (1, 2, 4, 8), drop=0.0)


@contextlib.contextmanager
def narrow_swin() -> Iterator[None]:
    """`model.backbone=swin_t` is the narrow one within the block."""
    with mock.patch.dict(BACKBONES, {"swin_t": lambda: SwinTransformer(NARROW)}):
        yield
