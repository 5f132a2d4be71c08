"""A step of a Swin, forward and backward pass of its four maps: torchvision's against ours.

`python benchmarks/swin_step.py`: noise, one thread, float32, CPU, equal weights, without stochastic
depth. Processor time in turns; then the memory that the first step of a fresh process adds, ours
also with `model.checkpoint_activations`.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Callable

import torch
import torchvision
from peak_memory import PeakMemory
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from models.backbone import build_backbone
from models.swin import Block

KINDS = ("theirs", "ours", "ours, checkpoints")
ENDS = (1, 3, 5, 7)  # of torchvision's features that are C2 to C5


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(description="Time and memory of a step of a Swin.")
    add = parser.add_argument
    add("--size", choices=("t", "s", "b"), default="t")
    add("--images", type=int, default=2)
    add("--sides", type=int, nargs=2, default=(320, 416), help="height and width, px")
    add("--pairs", type=int, default=5, help="timings of each, in turns")
    args = parser.parse_args()
    torch.set_num_threads(1)
    steps = {kind: make_step(kind, args) for kind in KINDS}
    seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for number in range(args.pairs + 1):
        for kind, step in steps.items():
            start = time.process_time()
            step()
            if number > 0:  # the first allocates
                seconds[kind].append(time.process_time() - start)
    fresh = multiprocessing.get_context("spawn")
    print(f"swin_{args.size}, {args.images} images of {args.sides[0]} x {args.sides[1]} px")
    for kind in KINDS:
        ratio = statistics.median(
            a / b for a, b in zip(seconds["theirs"], seconds[kind], strict=True)
        )
        with fresh.Pool(1) as pool:
            memory = pool.apply(peak, (kind, args))
        print(
            f"{kind:20} {statistics.median(seconds[kind]):.2f} s, theirs / this {ratio:.2f}; "
            f"{memory:.2f} GB",
            flush=True,
        )


def peak(kind: str, args: argparse.Namespace) -> float:
    """Gigabytes that the first step adds."""
    torch.set_num_threads(1)
    step = make_step(kind, args)
    with PeakMemory() as memory:
        step()
    return memory.bytes / 1e9


def make_step(kind: str, args: argparse.Namespace) -> Callable[[], None]:
    """A function that does a forward and a backward pass."""
    torch.manual_seed(0)
    theirs = getattr(torchvision.models, f"swin_{args.size}")().train()
    for module in theirs.modules():
        if isinstance(module, StochasticDepth):
            module.p = 0.0
    images = torch.randn(args.images, 3, *args.sides)
    forward: Callable[[Tensor], list[Tensor]] = TheirMaps(theirs)
    if kind != "theirs":
        ours = build_backbone(f"swin_{args.size}", frozen_stages=0).train()
        weights = {k: v for k, v in theirs.state_dict().items() if not k.startswith("head.")}
        assert not ours.load_state_dict(weights, strict=False).unexpected_keys
        for block in (module for module in ours.modules() if isinstance(module, Block)):
            block.drop = 0.0
        if kind != "ours":
            ours.checkpoint_activations()
        forward = ours
    return lambda: sum((f * f).mean() for f in forward(images)).backward()


class TheirMaps(nn.Module):
    """torchvision's layers up to each map, with a norm of each."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.features = model.features
        widths = [model.norm.normalized_shape[0] // 2**n for n in (3, 2, 1, 0)]
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in widths)

    def forward(self, images: Tensor) -> list[Tensor]:
        """(N, 3, H, W) to four maps (N, C, H/s, W/s)."""
        x, maps = images, []
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in ENDS:
                norm = self.norms[ENDS.index(index)]
                maps.append(norm(x).permute(0, 3, 1, 2).contiguous())
        return maps


if __name__ == "__main__":
    main()
