"""Detection of each detector: torchvision's against ours, in turns.

`python benchmarks/inference.py`: 2 noise images of 320 px, one thread, float32; from normalised
images to boxes, with 1000 candidates per image above the score threshold. See `torchvision_pairs`
for what is equal, and `train_step.py` for the options on a GPU.
"""

from __future__ import annotations

import argparse

import torch
from side_by_side import Run, arguments, compare, precision
from torch import nn
from torchvision_pairs import Batch


def detection(model: nn.Module, batch: Batch, args: argparse.Namespace) -> Run:
    """A function that detects once."""

    @torch.no_grad()
    def detect() -> None:
        with precision(args):
            model(batch.images, batch.image_sizes)

    return detect


if __name__ == "__main__":
    compare(arguments(__doc__), detection, inference=True)
