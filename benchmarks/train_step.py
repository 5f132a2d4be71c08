"""One training step of each detector: torchvision's against ours, in turns.

`python benchmarks/train_step.py`: 2 noise images of 320 px with 10 boxes each, one thread, float32.
A step is forward, backward, SGD with momentum; see `torchvision_pairs` for what is equal. On a GPU:

    python benchmarks/train_step.py --device cuda --images 16 --side 800 --amp bf16 \\
        --channels-last --compile
"""

from __future__ import annotations

import argparse

import torch
from side_by_side import Run, arguments, compare, precision
from torch import nn
from torchvision_pairs import Batch, Theirs

from aligndet.optim import OptimConfig, build_optimizer


def training_step(model: nn.Module, batch: Batch, args: argparse.Namespace) -> Run:
    """A function that does one step; weights hardly move, and the samples are always the same."""
    # Torchvision has no training loop of its own: its steps are those of PyTorch's defaults.
    optimizer = build_optimizer(model, OptimConfig(lr=1e-9), fused=not isinstance(model, Theirs))

    def step() -> None:
        torch.manual_seed(0)
        optimizer.zero_grad(set_to_none=True)
        with precision(args):
            losses = model(batch.images, batch.image_sizes, batch.targets)
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()

    return step


if __name__ == "__main__":
    compare(arguments(__doc__), training_step, inference=False)
