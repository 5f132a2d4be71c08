"""Peak memory of one training step: torchvision's detectors against ours, each in a fresh process.

`python benchmarks/step_memory.py`: as `train_step.py`, 2 noise images of 320 px, one thread,
float32, CPU. The peak is what the step adds to the resident memory of the process, which holds both
models and the batch.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys

import torch
from peak_memory import PeakMemory
from side_by_side import arguments
from torchvision_pairs import build_pair, random_batch
from train_step import training_step


def peak(detector: str, who: str, args: argparse.Namespace) -> float:
    """Gigabytes that the first step adds."""
    torch.set_num_threads(args.threads)
    batch = random_batch(args.images, args.side, args.boxes, torch.device("cpu"))
    theirs, ours = build_pair(detector)
    step = training_step({"theirs": theirs, "ours": ours}[who].train(), batch, args)
    with PeakMemory() as memory:
        step()
    return memory.bytes / 1e9


def main() -> None:
    """Measure and print a line per detector."""
    args = arguments(__doc__)
    if args.device != "cpu":
        sys.exit("error: this measures a CPU's memory; leave --device out")
    fresh = multiprocessing.get_context("spawn")
    for detector in args.detectors:
        found = {}
        for who in ("theirs", "ours"):
            with fresh.Pool(1) as pool:
                found[who] = pool.apply(peak, (detector, who, args))
        ratio = found["theirs"] / found["ours"]
        print(
            f"{detector:12} theirs {found['theirs']:.2f} GB, ours {found['ours']:.2f} GB, "
            f"theirs / ours {ratio:.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
