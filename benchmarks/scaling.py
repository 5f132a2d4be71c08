"""How much faster two processes are than one, at the same number of images per step, on CPU.

`python benchmarks/scaling.py`: FCOS with a ResNet-50, one thread per process. A step is what
`train.fit` computes on each rank (DDP from `aligndet.dist`): forward, backward with the gradients'
average, SGD, the target's update and the agreement on signals; without loading. One process with
all images and two with half of them each take turns, and the medians are compared. Two more kinds
of step tell what the average costs: two processes that leave it out, and the average alone. The
ratio of processor times says what is left to gain where other programs take part of the cores.

The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import socket
import statistics
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from pretrain_step import two_views
from torch import nn

from aligndet import dist
from aligndet.box_domain import BoxDomain, BoxDomainConfig
from aligndet.fine_tuning import FineTuning
from models import ModelConfig, build_detector
from train import no_sync

STAGES = ("fine_tuning", "box_domain")
KINDS = ("one", "two", "two_apart", "average")


@dataclass(frozen=True)
class Size:
    """What a step is computed on."""

    images: int  # of all processes
    side: int  # pixels
    boxes: int  # per image


def part_of(batch: dict[str, Any], rank: int, ranks: int) -> dict[str, Any]:
    """A rank's share of a batch: every value has one entry per image."""
    count = len(batch["images"]) // ranks
    return {key: value[rank * count : (rank + 1) * count] for key, value in batch.items()}


def build(stage: str, size: Size, rank: int, ranks: int) -> tuple[nn.Module, Any]:
    """The task and this rank's batch; the same weights on every rank."""
    torch.manual_seed(0)
    classes = 80 if stage == "fine_tuning" else 1
    detector = build_detector(ModelConfig(detector="fcos", backbone="resnet50"), classes)
    views = two_views(size.images, size.side, size.side, size.boxes)
    views = [part_of(view, rank, ranks) for view in views]
    if stage == "box_domain":
        return BoxDomain(detector, "fcos", BoxDomainConfig()), views
    boxes = views[0]["boxes"]
    targets = [{"boxes": b, "labels": torch.arange(len(b)) % classes} for b in boxes]
    return FineTuning(detector), {**views[0], "targets": targets}


class Stepper:
    """One process's model, batch and optimiser."""

    def __init__(self, stage: str, size: Size, rank: int, ranks: int) -> None:
        self.task, self.batch = build(stage, size, rank, ranks)
        self.task.to(memory_format=torch.channels_last)
        trained = [p for p in self.task.parameters() if p.requires_grad]
        self.optimizer = torch.optim.SGD(trained, lr=1e-4, momentum=0.9)
        self.model = dist.synchronised(self.task) if ranks > 1 else self.task
        self.parts = [torch.zeros_like(p) for p in trained]  # for the average alone

    def step(self, apart: bool = False) -> None:
        """A step of training; `apart` leaves the average of the gradients out."""
        self.optimizer.zero_grad(set_to_none=True)
        with no_sync(self.model, apart):
            losses, _ = self.model(self.batch, False)  # as in a step that is not logged
        torch.stack(list(losses.values())).sum().backward()
        self.optimizer.step()
        self.task.update_target(0, 1000)
        dist.highest_over_ranks(0)

    def average(self) -> None:
        """The average of as many numbers, with nothing to compute meanwhile."""
        work = [torch.distributed.all_reduce(part, async_op=True) for part in self.parts]
        for one in work:
            one.wait()


def process_main(
    pipe: Connection, stage: str, size: Size, rank: int, ranks: int, port: int
) -> None:
    """Do the kinds of steps that the pipe names, and answer each."""
    torch.set_num_threads(1)
    if ranks > 1:
        names = {"WORLD_SIZE": ranks, "RANK": rank, "LOCAL_RANK": rank, "MASTER_PORT": port}
        os.environ.update({key: str(value) for key, value in names.items()})
        os.environ["MASTER_ADDR"] = "127.0.0.1"
    with dist.process_group("cpu"):
        stepper = Stepper(stage, size, rank, ranks)
        do = {"two_apart": lambda: stepper.step(apart=True), "average": stepper.average}
        count = sum(part.nbytes for part in stepper.parts)
        pipe.send(count)
        while kind := pipe.recv():
            start = time.process_time()
            do.get(kind, stepper.step)()
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
            pipe.send((time.process_time() - start, peak))


class Processes:
    """One process, or two that form a group."""

    def __init__(self, stage: str, size: Size, ranks: int) -> None:
        spawn = multiprocessing.get_context("spawn")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.pipes, self.processes = [], []
        for rank in range(ranks):
            ours, theirs = spawn.Pipe()
            arguments = (theirs, stage, size, rank, ranks, port)
            process = spawn.Process(target=process_main, args=arguments, daemon=True)
            process.start()
            theirs.close()  # else the end of the process would not be noticed
            self.pipes.append(ours)
            self.processes.append(process)
        self.gradient_bytes = [pipe.recv() for pipe in self.pipes][0]
        self.peak = 0.0  # gigabytes resident, of the larger process

    def seconds(self, kind: str) -> tuple[float, float]:
        """How long all of them take for one step, and the processor time of the busiest one."""
        start = time.perf_counter()
        for pipe in self.pipes:
            pipe.send(kind)
        processor, peaks = zip(*[pipe.recv() for pipe in self.pipes], strict=True)
        self.peak = max(peaks)
        return time.perf_counter() - start, max(processor)

    def end(self) -> None:
        """Let them end."""
        for pipe, process in zip(self.pipes, self.processes, strict=True):
            pipe.send("")
            process.join()


def measure(stage: str, size: Size, rounds: int) -> dict[str, float]:
    """Medians of `rounds` rounds, each one step of each kind; two rounds before do not count."""
    one, two = Processes(stage, size, 1), Processes(stage, size, 2)
    taken: dict[str, list[tuple[float, float]]] = {kind: [] for kind in KINDS}
    for _ in range(rounds + 2):  # DDP orders its buckets after the first step
        for kind in KINDS:
            taken[kind].append((one if kind == "one" else two).seconds(kind))
    one.end()
    two.end()
    wall, processor = (
        {kind: [pair[which] for pair in pairs[2:]] for kind, pairs in taken.items()}
        for which in range(2)
    )
    return {
        "speedup": median_ratio(wall["one"], wall["two"]),
        "processor_speedup": median_ratio(processor["one"], processor["two"]),
        **{f"{kind}_seconds": statistics.median(times) for kind, times in wall.items()},
        "gradient_megabytes": two.gradient_bytes / 1e6,
        "one_peak_gb": one.peak,
        "two_peak_gb": two.peak,
    }


def median_ratio(first: list[float], second: list[float]) -> float:
    """Of each round, then the median: rounds differ more than the kinds within one."""
    return statistics.median(a / b for a, b in zip(first, second, strict=True))


def main() -> None:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=8, help="per step, of all processes")
    parser.add_argument("--side", type=int, default=320, help="pixels")
    parser.add_argument("--boxes", type=int, default=50, help="per image")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    args = parser.parse_args()
    size = Size(args.images, args.side, args.boxes)
    load = Path("/proc/loadavg").read_text().split()[0] if os.path.exists("/proc/loadavg") else "?"
    print(f"torch {torch.__version__}, {os.cpu_count()} cores, load {load} before the start")
    print(f"FCOS, ResNet-50, {size.images} images of {size.side} px per step, 1 thread per process")
    results = {}
    for stage in args.stages:
        found = results[stage] = measure(stage, size, args.rounds)
        left = found["two_seconds"] - found["two_apart_seconds"]
        print(
            f"  {stage:12} 1 process {found['one_seconds']:.2f} s, 2 processes "
            f"{found['two_seconds']:.2f} s per step: {found['speedup']:.2f} x (in processor time "
            f"{found['processor_speedup']:.2f} x); the average of "
            f"{found['gradient_megabytes']:.0f} MB takes {found['average_seconds']:.3f} s alone "
            f"and {left:.3f} s of a step",
            flush=True,
        )
    print(json.dumps({"images": size.images, "side": size.side, **results}))


if __name__ == "__main__":
    main()
