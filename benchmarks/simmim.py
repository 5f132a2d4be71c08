"""SimMIM against MoCo v2 and an untrained backbone: a narrow Swin on small images, on a CPU.

    python benchmarks/simmim.py --images datasets/cifar10 --minutes 10

Both methods get the same time: short runs, in turns, say how many steps that is. `--images` holds
`train` and `test`, each with one folder per class. Prints the accuracy of k-NN and of a linear
layer on frozen features, and keeps the runs, with the pictures of SimMIM, in `--output`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import yaml

import pretrain
from aligndet.probe import ProbeData, probe
from models.backbone import BACKBONES
from models.swin import SwinConfig, SwinTransformer

NARROW = SwinConfig("swin_t", 32, (2, 2, 4, 2), (1, 2, 4, 8), drop=0.0, window=4)
CROP, BATCH = 64, 64
METHODS: dict[str, dict[str, Any]] = {
    "simmim": {"simmim": {"patch_size": 16}},
    "moco_v2": {"moco": {"queue": 4096, "momentum": 0.99, "temperature": 0.1}, "blur": 0.0},
}
SHORT, PAIRS = 12, 3  # steps of a short run, and how many of each method


def main() -> None:
    """Measure, train, print."""
    parser = argparse.ArgumentParser(description="SimMIM against MoCo v2 at equal time.")
    parser.add_argument("--images", type=Path, required=True, help="folder with train and test")
    parser.add_argument("--minutes", type=float, default=10.0, help="of each method")
    parser.add_argument("--output", type=Path, default=Path("runs/simmim"))
    args = parser.parse_args()
    seconds: dict[str, list[float]] = {method: [] for method in METHODS}
    for number in range(PAIRS):
        for method in METHODS:
            folder = args.output / f"short_{method}_{number}"
            train(method, folder, SHORT, args.images)
            speed = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
            seconds[method].append(BATCH / speed["images_per_second"])
    print("| | steps | seconds per step | k-NN | linear |\n|---|---|---|---|---|")
    print_row("untrained", 0, 0.0, untrained(args.images))
    for method, measured in seconds.items():
        step = statistics.median(measured)
        steps, folder = round(60 * args.minutes / step), args.output / method
        train(method, folder, steps, args.images, evaluations=8)
        print_row(method, steps, step, json.loads((folder / "results.json").read_text()))


def train(method: str, folder: Path, steps: int, images: Path, evaluations: int = 0) -> None:
    """Train the narrow Swin in this process."""
    image = {"method": method, "crop_size": CROP, **METHODS[method]}
    if evaluations:
        image |= {"probe_train": str(images / "train"), "probe_val": str(images / "test")}
    every = {"every": steps // evaluations} if evaluations else {}
    config = {
        "output_dir": str(folder),
        "device": "cpu",
        "data": {"train": {"images": str(images / "train")}, "batch_size": BATCH, "workers": 0},
        "model": {"backbone": "swin_t"},
        "image": image,
        "optim": {"name": "adamw", "lr": 1e-3, "weight_decay": 0.05, "clip_norm": 5.0},
        "schedule": {"iterations": steps, "decay": "cosine", "warmup_iterations": 0.1},
        "evaluation": every,
        "loop": {"log_every": SHORT // 2, "checkpoint_every": max(SHORT, steps // 8)},
    }
    config["optim"]["decay_norm_and_bias"] = False
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "benchmark.yaml"
    file.write_text(yaml.safe_dump(config))
    arguments = ["pretrain", "--stage", "image", "--config", str(file)]
    narrow = mock.patch.dict(BACKBONES, {"swin_t": lambda: SwinTransformer(NARROW)})
    with narrow, mock.patch.object(sys, "argv", arguments):
        pretrain.main()


def untrained(images: Path) -> dict[str, float]:
    """The accuracy of random features."""
    torch.manual_seed(0)
    data = ProbeData.read(str(images / "train"), str(images / "test"))
    return probe(SwinTransformer(NARROW), data, CROP, BATCH, 0, torch.device("cpu"))


def print_row(name: str, steps: int, step: float, scores: dict[str, float]) -> None:
    """A row of the table."""
    accuracy = f"{scores['knn']:.1f} | {scores['linear']:.1f}"
    print(f"| {name} | {steps:,} | {step:.2f} | {accuracy} |", flush=True)


if __name__ == "__main__":
    main()
