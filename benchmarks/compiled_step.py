"""One training step of each detector as it is, against the same with `compile=model`, in turns.

`python benchmarks/compiled_step.py`: the batch and the detectors of `train_step.py`, each without
autocast and under bf16. Prints the seconds until the first step is done, the median ratio, and by
how much losses and gradients differ. Building the graphs of a ResNet-50 takes minutes on a CPU.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Iterable

import torch
from side_by_side import arguments, precision, timed
from torch import Tensor, nn
from torchvision_pairs import Batch, build_pair, random_batch

from aligndet.compiling import compile_layers


def step_of(model: nn.Module, batch: Batch, args: argparse.Namespace) -> dict[str, Tensor]:
    """Losses and gradients with the samples that seed 0 draws."""
    torch.manual_seed(0)
    model.zero_grad()
    with precision(args):
        losses = model(batch.images, batch.image_sizes, batch.targets)
    torch.stack(list(losses.values())).sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {**{name: loss.detach() for name, loss in losses.items()}, **gradients}


def difference(one: dict[str, Tensor], two: dict[str, Tensor], names: Iterable[str]) -> float:
    """The largest norm of a difference, relative to the norm of `one`."""
    return max(float((one[n] - two[n]).norm() / one[n].norm().clamp(min=1e-12)) for n in names)


def compare(detector: str, args: argparse.Namespace) -> dict[str, float]:
    """Plain against compiled."""
    torch._dynamo.reset()
    device = torch.device(args.device)
    plain = build_pair(detector)[1].to(device).train()
    compiled = copy.deepcopy(plain)
    compile_layers(compiled, "model")
    batch = random_batch(args.images, args.side, args.boxes, device)
    expected, start = step_of(plain, batch, args), time.perf_counter()
    found = step_of(compiled, batch, args)
    result = {"first_step": time.perf_counter() - start}
    losses = [name for name, value in expected.items() if value.dim() == 0]
    result["losses_differ"] = difference(expected, found, losses)
    result["gradients_differ"] = difference(expected, found, expected.keys() - losses)
    models = {"plain": plain, "compiled": compiled}
    seconds: dict[str, list[float]] = {who: [] for who in models}
    for _ in range(args.pairs):
        for who, model in models.items():
            seconds[who].append(timed(lambda model=model: step_of(model, batch, args), args))
    result |= {who: statistics.median(values) for who, values in seconds.items()}
    pairs = zip(seconds["plain"], seconds["compiled"], strict=True)
    result["plain_per_compiled"] = statistics.median(a / b for a, b in pairs)
    return result


def main() -> None:
    """One line per detector and precision; one JSON line last."""
    args = arguments(__doc__)
    torch.set_num_threads(args.threads)
    results = {}
    for detector in args.detectors:
        for args.amp in ("none", "bf16"):
            result = results[f"{detector} {args.amp}"] = compare(detector, args)
            found = ", ".join(f"{name} {value:.3g}" for name, value in result.items())
            print(f"  {detector:12} {args.amp:5} {found}", flush=True)
    print(json.dumps({"settings": vars(args), "results": results}))


if __name__ == "__main__":
    main()
