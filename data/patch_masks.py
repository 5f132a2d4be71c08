"""Which square patches of an image are hidden in masked image modelling.

Legend: S pixels of an image's sides, P pixels of a patch's.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class RandomPatches:
    """A share of the patches of a grid, each set of them equally likely (SimMIM, section 3.2)."""

    size: int  # S, a multiple of P
    patch_size: int  # P
    ratio: float  # of the patches, 0..1, rounded up to whole ones

    def __call__(self, rng: random.Random) -> Tensor:
        """(S / P, S / P) bool, True where a patch is hidden."""
        side = self.size // self.patch_size
        # Without its error, a product such as 0.28 * 25 would be rounded up to one patch more.
        count = math.ceil(round(self.ratio * side**2, 6))
        mask = torch.zeros(side**2, dtype=torch.bool)
        mask[rng.sample(range(side**2), count)] = True
        return mask.view(side, side)
