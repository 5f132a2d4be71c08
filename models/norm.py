"""BatchNorm whose statistics and affine are fixed, as detectors fine-tune with.

A detector sees a few images a step, too few to estimate statistics from, so the usual
recipe (He et al., "Mask R-CNN", section 3.1) keeps those of the classification pre-training.
"""

from __future__ import annotations

from torch import nn


class FrozenBatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` that is always in eval mode and has no trainable parameter.

    Its state_dict has the keys of `nn.BatchNorm2d`, `num_batches_tracked` included, so weights
    move between the two without renaming.
    """

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__(num_features, eps=eps)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> FrozenBatchNorm2d:
        """Stay in eval mode, whatever `mode` the detector around it is put in."""
        return super().train(False)
