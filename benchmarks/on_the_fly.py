"""Cost of searching for boxes on the fly: pre-training with and without a proposal file, on CPU.

`python benchmarks/on_the_fly.py`: FCOS with ResNet-18 on generated images, or on photographs with
`--images DIR`. It first times writing the file and an epoch that searches; then steps with the
file against steps with the filled cache, and single samples of each. The two alternate, on the
same images. Batches are loaded in the training process: the worst case, as loader workers would
hide the loading time.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from tqdm import tqdm

from aligndet.box_domain import BoxDomain, BoxDomainConfig
from data.build import DataConfig, SplitConfig, build_two_views
from data.loaders import GroupedBatchSampler, train_loader
from data.normalise import normalise_batch
from data.proposals.command import main as write_proposals
from data.shapes import generate
from data.views import SampleKey, TwoViewDataset, collate_views
from data.walk import list_images
from models import ModelConfig, build_detector

Datasets = dict[str, TwoViewDataset]


def chosen_images(options: argparse.Namespace, folder: Path) -> Path:
    """A folder of `options.count` images: generated, or links to some of the given ones."""
    if options.images is None:
        generate(folder / "shapes", options.count, 1, options.size)
        return folder / "shapes/images/train"
    root, chosen = Path(options.images).resolve(), folder / "chosen"
    names = list_images(root)
    chosen.mkdir()
    for number, name in enumerate(random.Random(0).sample(names, min(options.count, len(names)))):
        (chosen / f"{number}{Path(name).suffix}").symlink_to(root / name)
    return chosen


def build_datasets(options: argparse.Namespace, images: Path, folder: Path) -> Datasets:
    """The same images with a proposal file and with a cache that is still empty."""
    file = folder / "proposals.json"
    start = time.perf_counter()
    command = ["--images", str(images), "--output", str(file), "--workers", "1"]
    if write_proposals(command) != 0:
        raise SystemExit(1)
    print(f"python -m data.proposals, one process: {time.perf_counter() - start:.1f} s")
    common = {"short_sides": tuple(options.short_sides), "proposal_cache": str(folder / "cache")}
    splits = {
        "file": SplitConfig(images=str(images), proposals=str(file)),
        "cache": SplitConfig(images=str(images)),
    }
    return {
        name: build_two_views(DataConfig(train=split, **common), options.max_proposals)
        for name, split in splits.items()
    }


class Training:
    """Box-domain pre-training that can be timed step by step."""

    def __init__(self, options: argparse.Namespace, dataset: TwoViewDataset) -> None:
        torch.manual_seed(0)
        config = ModelConfig(detector="fcos", backbone="resnet18", options={"channels": 64})
        self.task = BoxDomain(build_detector(config, 1), "fcos", BoxDomainConfig()).train()
        trainable = [p for p in self.task.parameters() if p.requires_grad]
        self.optimizer = torch.optim.SGD(trainable, lr=0.001, momentum=0.9)
        ratios = dataset.source.aspect_ratios
        sampler = GroupedBatchSampler(ratios, options.batch_size)
        self.epoch = sampler.steps_per_epoch
        self.batches = iter(train_loader(dataset, sampler, collate_views, workers=0))

    def step(self) -> float:
        """Seconds of one step: load, forward, backward, SGD, the target's update."""
        start = time.perf_counter()
        losses, _ = self.task(normalise_batch(next(self.batches)))
        self.optimizer.zero_grad()
        sum(losses.values()).backward()
        self.optimizer.step()
        self.task.update_target(0, 2)
        return time.perf_counter() - start


def alternate(
    calls: dict[str, Callable[[], float]], segments: int, length: int
) -> dict[str, list[float]]:
    """Seconds of `segments` times `length` calls of each; they take turns, also in starting."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for segment in tqdm(range(segments), desc="segments"):
        for name in list(calls)[:: 1 if segment % 2 else -1]:
            seconds[name] += [calls[name]() for _ in range(length)]
    return seconds


def sample_times(datasets: Datasets, rounds: int) -> dict[str, list[float]]:
    """Seconds per sample of both datasets, in turns, with the same views."""
    seconds: dict[str, list[float]] = {name: [] for name in datasets}
    for number in range(rounds):
        for index in tqdm(range(len(datasets["file"])), desc="samples"):
            for name in list(datasets)[:: 1 if (index + number) % 2 else -1]:
                start = time.perf_counter()
                datasets[name][SampleKey(index, f"sample {number} {index}")]
                seconds[name].append(time.perf_counter() - start)
    return seconds


def report(title: str, seconds: dict[str, list[float]]) -> None:
    """Medians and means, and how they compare."""
    print(f"{title}, {len(seconds['file'])} of each:")
    for name, average in (("median", statistics.median), ("mean", statistics.mean)):
        file, cache = average(seconds["file"]), average(seconds["cache"])
        print(
            f"  {name:6} {1000 * file:8.2f} ms with a file, {1000 * cache:8.2f} ms with the cache: "
            f"ratio {cache / file:.3f}"
        )


def measure(options: argparse.Namespace, folder: Path) -> None:
    """Everything, with all files in `folder`."""
    images = chosen_images(options, folder)
    datasets = build_datasets(options, images, folder)
    runs = {name: Training(options, dataset) for name, dataset in datasets.items()}
    print(f"{len(datasets['file'])} images, {runs['file'].epoch} steps per epoch")
    first: dict[str, float] = {}
    for name, run in runs.items():
        first[name] = sum(run.step() for _ in tqdm(range(run.epoch), desc=f"epoch, {name}"))
    searching = first["cache"] - first["file"]
    print(
        f"first epoch: {first['file']:.1f} s with a file, {first['cache']:.1f} s with an empty "
        f"cache, {1000 * searching / len(datasets['file']):.0f} ms more per image"
    )
    calls = {name: run.step for name, run in runs.items()}
    report("steps after it", alternate(calls, options.segments, options.length))
    report("samples", sample_times(datasets, options.rounds))


def main() -> None:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", metavar="DIR", help="photographs; else images are generated")
    parser.add_argument("--count", type=int, default=64, help="images (64)")
    parser.add_argument("--size", type=int, default=160, help="longer side if generated (160)")
    parser.add_argument("--short-sides", type=int, nargs="+", default=[80, 96, 112], metavar="PX")
    parser.add_argument("--batch-size", type=int, default=4, help="images per step (4)")
    parser.add_argument("--max-proposals", type=int, metavar="N", help="per image; default: all")
    parser.add_argument("--segments", type=int, default=10, help="of each kind, in turns (10)")
    parser.add_argument("--length", type=int, default=8, help="steps per segment (8)")
    parser.add_argument("--rounds", type=int, default=4, help="epochs of single samples (4)")
    options = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, CPU")
    with tempfile.TemporaryDirectory() as folder:
        measure(options, Path(folder))


if __name__ == "__main__":
    main()
