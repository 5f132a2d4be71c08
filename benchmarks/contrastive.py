"""Time and peak memory of the contrastive loss and its gradient, on CPU.

`python benchmarks/contrastive.py` measures ours at 4096 online and 4096 target samples, 200
instances, D = 256; then ours against the usual formulation, which lists the negatives once per
positive pair, at a size where the latter fits into memory.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from peak_memory import PeakMemory
from torch import Tensor

from losses.contrastive import instance_contrastive_loss

TEMPERATURE = 0.5  # the paper's; neither time nor memory depends on it
Samples = tuple[Tensor, Tensor, Tensor, Tensor]


class Run(NamedTuple):
    """Result and cost of one call of a loss and its gradient."""

    value: float
    seconds: float
    bytes: int


def make_samples(count: int, instances: int, width: int, background: float) -> Samples:
    """Random unit embeddings of both views; `background` is the share without an instance."""
    generator = torch.Generator().manual_seed(0)
    embeddings = F.normalize(torch.randn(2, count, width, generator=generator), dim=2)
    ids = torch.randint(0, instances, (2, count), generator=generator)
    ids[torch.rand(2, count, generator=generator) < background] = -1
    return embeddings[0].clone().requires_grad_(), embeddings[1].clone(), ids[0], ids[1]


def expanded_loss(query: Tensor, key: Tensor, query_ids: Tensor, key_ids: Tensor) -> Tensor:
    """The equation with one row of negatives for each positive pair."""
    pool, pool_ids = torch.cat([key, query.detach()]), torch.cat([key_ids, query_ids])
    losses = []
    for instance in query_ids[query_ids >= 0].unique():
        anchors, positives = query[query_ids == instance], key[key_ids == instance]
        if len(positives) == 0:
            continue
        positive = (anchors @ positives.T).reshape(-1, 1) / TEMPERATURE  # (pairs, 1)
        negative = anchors @ pool[pool_ids != instance].T / TEMPERATURE
        negative = negative.repeat_interleave(len(positives), dim=0)  # (pairs, negatives)
        logits = torch.cat([positive, negative], dim=1)
        losses.append(F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long)))
    return torch.stack(losses).mean()


LOSSES = {
    "ours": partial(instance_contrastive_loss, temperature=TEMPERATURE),
    "expanded": expanded_loss,
}


def run(name: str, samples: int, instances: int, width: int, background: float) -> Run:
    """Value, seconds and peak bytes above the inputs of a loss and its gradient; called in a fresh
    process."""
    warm = make_samples(64, 4, width, 0.0)
    inputs = make_samples(samples, instances, width, background)
    torch.autograd.grad(LOSSES[name](*warm), warm[0])
    with PeakMemory() as peak:
        value = LOSSES[name](*inputs)
        torch.autograd.grad(value, inputs[0])
    return Run(value.item(), peak.seconds, peak.bytes)


def compare(title: str, rounds: int, names: Sequence[str], *size: float) -> None:
    """Run the losses alternately, each time in a fresh process, and print medians."""
    results: dict[str, list[Run]] = {name: [] for name in names}
    spawn = multiprocessing.get_context("spawn")
    for _ in range(rounds):
        for name in names:
            with ProcessPoolExecutor(1, mp_context=spawn) as pool:
                results[name].append(pool.submit(run, name, *size).result())
    print(title)
    for name, runs in results.items():
        seconds = statistics.median(r.seconds for r in runs)
        gigabytes = statistics.median(r.bytes for r in runs) / 1e9
        cost = f"{seconds:8.3f} s {gigabytes:7.3f} GB above inputs"
        print(f"  {name:9} loss {runs[0].value:.6f} {cost}")


def main() -> None:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=4096, help="of each view")
    parser.add_argument("--instances", type=int, default=200)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, CPU")
    for background in (0.0, 0.5):
        title = f"{args.samples} + {args.samples} samples, {args.instances} instances, "
        title += f"{background:.0%} background"
        size = (args.samples, args.instances, args.width, background)
        compare(title, args.rounds, ["ours"], *size)
    small = (args.samples // 4, args.instances // 4, args.width, 0.0)
    title = "a quarter of the samples and of the instances, side by side"
    compare(title, args.rounds, list(LOSSES), *small)


if __name__ == "__main__":
    main()
