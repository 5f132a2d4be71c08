"""How many patches are hidden, and that each is as likely as the others."""

from __future__ import annotations

import random

import pytest
import torch

from data.patch_masks import RandomPatches


@pytest.mark.parametrize(
    ("size", "patch", "ratio", "count"),
    [
        (192, 32, 0.6, 22),  # 21.6 of 36, as in the authors' code
        (64, 32, 0.5, 2),
        (64, 32, 0.01, 1),
        (64, 32, 1.0, 4),
        (160, 32, 0.28, 7),  # 0.28 * 25 is 7.000000000000001
        (96, 16, 0.25, 9),
    ],
)
def test_the_number_of_hidden_patches(size, patch, ratio, count):
    mask = RandomPatches(size, patch, ratio)(random.Random(0))
    assert mask.shape == (size // patch, size // patch)
    assert mask.dtype == torch.bool
    assert mask.sum() == count


def test_every_patch_is_as_likely_and_draws_differ():
    hide, rng = RandomPatches(96, 32, 0.33), random.Random(0)
    masks = torch.stack([hide(rng) for _ in range(3000)])  # 3 of 9
    assert (masks.sum(dim=(1, 2)) == 3).all()
    share = masks.float().mean(dim=0)
    # A third each; the standard deviation of the share is 0.0086.
    assert (share - 1 / 3).abs().max() < 0.04
    assert len({tuple(mask.flatten().tolist()) for mask in masks}) == 84  # 9 over 3


def test_the_stream_decides():
    hide = RandomPatches(192, 32, 0.6)
    assert torch.equal(hide(random.Random("a")), hide(random.Random("a")))
    assert not torch.equal(hide(random.Random("a")), hide(random.Random("b")))
