"""Batches for training (endless, grouped, sharded, resumable) and for evaluation.

The order of the samples of an epoch is a function of (seed, epoch), and a rank takes its slice of
each *global* batch: any number of ranks sees the same images in the same steps, and a run resumes
at a step by starting the sampler there.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from data.views import SampleKey
from data.worker_pool import load_in_processes

# Entries of a batch that are used as numbers of the host: a GPU would have to be asked for them.
ON_HOST = ("image_sizes",)


class GroupedBatchSampler(Sampler[list[SampleKey]]):
    """Endless batches of images that are all portrait or all landscape, for little padding.

    If either group has fewer images than a global batch, both become one group: filling the
    smaller one's batch would repeat images within it.

    Args:
        aspect_ratios: height / width of every image.
        batch_size: images per rank and step.
        rank, world_size: which slice of each global batch is ours.
        seed: the order is reseeded from (seed, epoch) in every epoch.
        start_step: where to resume, counted from the start of the first epoch.

    The last global batch of a group is filled with images from the start of that group's order, so
    that all ranks take the same number of full steps. Only a dataset smaller than a global batch
    repeats images within a batch.
    """

    def __init__(
        self,
        aspect_ratios: Sequence[float],
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        start_step: int = 0,
    ) -> None:
        portrait = np.asarray(aspect_ratios) > 1
        self.batch_size, self.rank, self.world_size = batch_size, rank, world_size
        self.seed, self.start_step = seed, start_step
        self.global_batch = batch_size * world_size
        groups = [(portrait == kind).nonzero()[0] for kind in (False, True)]  # (N,) indices
        self.groups = [group for group in groups if len(group)]
        if min(map(len, self.groups)) < self.global_batch:
            self.groups = [np.arange(len(portrait))]
        self.steps_per_epoch = sum(-(-len(group) // self.global_batch) for group in self.groups)

    def global_batches(self, epoch: int) -> np.ndarray:
        """All global batches of an epoch, (steps, images) record indices."""
        rng = random.Random(f"order {self.seed} {epoch}")
        batches = []
        for group in self.groups:
            order = group[rng.sample(range(len(group)), len(group))]
            batches.append(
                np.resize(order, (-(-len(order) // self.global_batch), self.global_batch))
            )
        steps = list(range(self.steps_per_epoch))
        rng.shuffle(steps)
        return np.concatenate(batches)[steps]

    def __iter__(self) -> Iterator[list[SampleKey]]:
        epoch, first = divmod(self.start_step, self.steps_per_epoch)
        mine = slice(self.rank * self.batch_size, (self.rank + 1) * self.batch_size)
        while True:
            for step, batch in enumerate(self.global_batches(epoch)[first:, mine], start=first):
                # The place in the step is part of the seed: a filled batch may repeat an image.
                yield [
                    SampleKey(index, f"sample {self.seed} {epoch} {step} {place}")
                    for place, index in enumerate(batch.tolist(), start=mine.start)
                ]
            epoch, first = epoch + 1, 0


@dataclass(frozen=True)
class Loader:
    """Batches of a dataset, in order; every iteration starts from the first one."""

    dataset: Dataset[Any]
    batches: Iterable[list[SampleKey]]
    collate: Callable[[list[Any]], Any]
    workers: int  # processes that load; 0 loads in this process
    pin_memory: bool = False  # workers only: in memory that a GPU can fetch from by itself

    def __len__(self) -> int:
        return len(self.batches)  # those of evaluation are a list; training's have no end

    def __iter__(self) -> Iterator[Any]:
        return iterate(self)


def train_loader(
    dataset: Dataset[Any],
    sampler: GroupedBatchSampler,
    collate: Callable[[list[Any]], Any],
    workers: int,
    pin_memory: bool = False,
) -> Loader:
    """Loader over the sampler's endless batches; workers need no seeds: the samples carry them."""
    return Loader(dataset, sampler, collate, workers, pin_memory)


def eval_loader(
    dataset: Dataset[Any],
    aspect_ratios: Sequence[float],
    collate: Callable[[list[Any]], Any],
    batch_size: int,
    workers: int,
    rank: int = 0,
    world_size: int = 1,
    pin_memory: bool = False,
) -> Loader:
    """This rank's share of the images, each once, sorted by aspect ratio for little padding."""
    order = sorted(range(len(aspect_ratios)), key=lambda index: (aspect_ratios[index], index))
    keys = [SampleKey(index, f"eval {index}") for index in order[rank::world_size]]
    batches = [keys[start : start + batch_size] for start in range(0, len(keys), batch_size)]
    return Loader(dataset, batches, collate, workers, pin_memory)


def iterate(loader: Loader) -> Iterator[Any]:
    """Yield the batches of a loader.

    Raises:
        DataError: an input file cannot be used, or see `data.worker_pool.load_in_processes`.
    """
    if loader.workers > 0:
        yield from load_in_processes(loader)
        return
    for keys in loader.batches:
        yield loader.collate([loader.dataset[key] for key in keys])


def to_device(batch: Any, device: torch.device) -> Any:
    """Move every tensor in nested dicts, lists and tuples, except those of the `ON_HOST` keys."""
    if isinstance(batch, torch.Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, dict):
        return {
            key: value if key in ON_HOST else to_device(value, device)
            for key, value in batch.items()
        }
    if isinstance(batch, (list, tuple)):
        return type(batch)(to_device(value, device) for value in batch)
    return batch
