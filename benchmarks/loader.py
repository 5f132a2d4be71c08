"""Loading by our own processes against torch's `DataLoader`, on CPU: how fast batches are made.

`python benchmarks/loader.py`: pairs of views, of 2 photographs at 800 x 1333 pixels with 10 boxes
each, and of 64 small ones with 200 boxes each. The two loaders take turns with two processes each,
on the same batches. Nothing is computed in between.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader

from data.loaders import GroupedBatchSampler, Loader
from data.records import Record
from data.transforms import Augment
from data.views import TwoViewDataset, collate_views


class Photographs:
    """One picture read again and again, with boxes anywhere in it."""

    def __init__(self, folder: Path, width: int, height: int, boxes: int) -> None:
        noise = np.random.default_rng(0).integers(0, 255, (height // 8, width // 8, 3), np.uint8)
        self.file = folder / f"{width}.jpg"
        Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC).save(self.file)
        self.width, self.height, self.boxes = width, height, boxes
        self.aspect_ratios = [height / width] * 1000

    def __len__(self) -> int:
        return len(self.aspect_ratios)

    def read(self, index: int) -> tuple[Image.Image, Record]:
        """The picture with boxes of its own."""
        corners = torch.rand(self.boxes, 2, 2, generator=torch.Generator().manual_seed(index))
        corners *= torch.tensor([self.width, self.height])
        boxes = torch.cat([corners.amin(dim=1), corners.amax(dim=1)], dim=1)
        labels = torch.zeros(self.boxes, dtype=torch.int64)
        image = Image.open(self.file).convert("RGB")
        return image, Record(index, self.file.name, self.height, self.width, boxes, labels)


def one_thread(_: int) -> None:
    """What our own workers do as well."""
    torch.set_num_threads(1)


def batches_of(name: str, dataset: TwoViewDataset, size: int, args: argparse.Namespace) -> Any:
    """A loader of the same batches of `size` images."""
    sampler = GroupedBatchSampler(dataset.source.aspect_ratios, size)
    keys = list(itertools.islice(sampler, args.batches))
    if name == "ours":
        return Loader(dataset, keys, collate_views, args.workers)
    return DataLoader(
        dataset,
        batch_sampler=keys,
        collate_fn=collate_views,
        num_workers=args.workers,
        worker_init_fn=one_thread,
    )


def processor_seconds() -> float:
    """Of this process and of those that it has waited for."""
    return sum(os.times()[:4])


def measure(title: str, dataset: TwoViewDataset, size: int, args: argparse.Namespace) -> None:
    """Print medians over the rounds; a round includes the start and the end of the workers."""
    wall: dict[str, list[float]] = {"DataLoader": [], "ours": []}
    processor: dict[str, list[float]] = {"DataLoader": [], "ours": []}
    for number in range(args.rounds):
        for name in list(wall)[:: 1 if number % 2 else -1]:
            start, before = time.perf_counter(), processor_seconds()
            for batch in batches_of(name, dataset, size, args):
                batch[0]["images"].sum()  # so that it counts if pages must be mapped
            wall[name].append(1000 * (time.perf_counter() - start) / args.batches)
            processor[name].append(1000 * (processor_seconds() - before) / args.batches)
    print(title)
    for what, times in (("time", wall), ("processor time", processor)):
        theirs, ours = (statistics.median(times[name]) for name in ("DataLoader", "ours"))
        ratio = statistics.median(b / a for a, b in zip(*times.values(), strict=True))
        print(
            f"  {what} per batch: {theirs:.1f} ms by DataLoader, {ours:.1f} ms by ours; "
            f"median of the pairs' ratios {ratio:.3f}",
            flush=True,
        )


def main() -> None:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=2, help="processes of each loader (2)")
    parser.add_argument("--rounds", type=int, default=9, help="of each loader, in turns (9)")
    parser.add_argument("--batches", type=int, default=24, help="per round (24)")
    args = parser.parse_args()
    print(f"torch {torch.__version__}, {args.workers} workers, {args.rounds} rounds")
    with tempfile.TemporaryDirectory() as folder:
        large = Photographs(Path(folder), 640, 384, boxes=10)
        small = Photographs(Path(folder), 160, 96, boxes=200)
        measure("2 x 800 x 1333 px", TwoViewDataset(large, Augment((800,)), None), 2, args)
        measure("64 x 96 x 160 px", TwoViewDataset(small, Augment((96,)), None), 64, args)


if __name__ == "__main__":
    main()
