"""What the checks of a run cost: share of the time of a training loop, on CPU.

`PYTHONPATH=. python benchmarks/checks.py`: box-domain pre-training of FCOS on a ResNet-18, 2 images
of 192 x 256 with 50 boxes each, in `train.fit` as users run it. The calls of each check are timed
inside the loop, so that both times come from the same steps.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from pretrain_step import random_boxes

import train
from aligndet.amp import SkippedSteps
from aligndet.box_domain import BoxDomain
from aligndet.config import build_config
from aligndet.health import Health
from aligndet.nonfinite import FiniteGuard
from aligndet.run_directory import RunDirectory
from data.views import collate_views
from models import build_detector, checksum

CHECKS = (
    (FiniteGuard, "check_loss"),
    (FiniteGuard, "check_gradient"),
    (train, "check_weights"),
    (SkippedSteps, "_count"),
    (SkippedSteps, "log"),
    (Health, "watch"),
    (train.stopping, "requested"),
    (train.dist, "highest_over_ranks"),
    (train.dist, "check_same_weights"),
    (checksum, "with_checksum"),  # of each checkpoint
)
AT_CHECKPOINTS = ("check_weights", "check_same_weights", "with_checksum")
SAVED_EVERY = 500  # steps, by default; here there is one checkpoint, at the end


class Noise:
    """Pairs of views of noise with random boxes; always the same."""

    def __init__(self, height: int, width: int, boxes: int) -> None:
        generator = torch.Generator().manual_seed(0)
        image = torch.randn(3, height, width, generator=generator)
        found = random_boxes(boxes, height, width, generator)
        self.view = {"image": image, "boxes": found, "name": "noise.jpg"}

    def __getitem__(self, key: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        return self.view, self.view


@contextlib.contextmanager
def timed(owner: Any, name: str, seconds: dict[str, float]) -> Iterator[None]:
    """Add up the time of the calls of a function."""
    function = getattr(owner, name)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            seconds[name] += time.perf_counter() - start

    with mock.patch.object(owner, name, wrapped):
        yield


def run(steps: int, height: int, width: int) -> tuple[float, dict[str, float]]:
    """Seconds of a whole loop, and those of each check in it."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        config = build_config(
            {
                "output_dir": folder,
                "device": "cpu",
                "data": {"batch_size": 2, "workers": 0},
                "model": {"backbone": "resnet18"},
                "optim": {"clip_norm": 1.0},
                "schedule": {"iterations": steps, "warmup_iterations": 0},
                "loop": {"log_every": 5, "checkpoint_every": SAVED_EVERY},
            }
        )
        torch.manual_seed(0)
        detector = build_detector(config.model, num_classes=1)
        task = BoxDomain(detector, config.model.detector, config.box_domain)
        batches = train.Batches(Noise(height, width, 50), [1.0] * 8, collate_views)
        run = RunDirectory(folder)
        run.open(config, None)
        seconds: dict[str, float] = defaultdict(float)
        for owner, name in CHECKS:
            stack.enter_context(timed(owner, name, seconds))
        start = time.perf_counter()
        train.fit(task, batches, config, run, None, torch.device("cpu"))
        return time.perf_counter() - start, dict(seconds)


def main() -> None:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--size", type=int, nargs=2, default=(192, 256), metavar=("H", "W"))
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, CPU")
    results = [run(args.steps, *args.size) for _ in range(args.rounds)]
    step = statistics.median(total for total, _ in results) / args.steps
    print(f"a step takes {1000 * step:.0f} ms; of that")
    shares = []
    for _, name in CHECKS:
        calls_in = SAVED_EVERY if name in AT_CHECKPOINTS else args.steps
        mine = statistics.median(seconds[name] for _, seconds in results) / calls_in
        shares.append(mine / step)
        print(f"  {name:20}{1000 * mine:9.4f} ms  {mine / step:9.4%}")
    print(f"all checks take {sum(shares):.4%} of a step")


if __name__ == "__main__":
    main()
