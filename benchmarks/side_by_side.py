"""What the timings of torchvision's detectors against ours share: options, clocks, tables.

On a CPU with one thread the clock counts the processor time of this process, so other work on the
machine matters less; otherwise it counts seconds, on CUDA with a synchronisation at both ends.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from step_shares import KINDS, shares
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision_pairs import DETECTORS, Batch, build_pair, random_batch, share_threshold

from aligndet.amp import AMP_DTYPES, autocast
from aligndet.compiling import compile_layers

# Dense peaks of an H100 SXM in the maker's data sheet, in TFLOP/s.
PEAK = {"none": 67.0, "bf16": 989.0, "fp16": 989.0}


def arguments(doc: str) -> argparse.Namespace:
    """The command line of both benchmarks."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    add = parser.add_argument
    add("--detectors", nargs="+", choices=DETECTORS, default=list(DETECTORS))
    add("--images", type=int, default=2, help="per batch")
    add("--side", type=int, default=320, help="px, of the square images")
    add("--boxes", type=int, default=10, help="labelled boxes per image")
    add("--pairs", type=int, default=10, help="timings of each, in turns")
    add("--warmup", type=int, default=2, help="untimed runs of each before them")
    add("--device", default="cpu", choices=("cpu", "cuda"))
    add("--threads", type=int, default=1, help="on the CPU")
    add("--amp", default="none", choices=AMP_DTYPES)
    add("--channels-last", action="store_true", help="torchvision's too; ours always is")
    add("--compile", action="store_true", help="both, see aligndet/compiling.py")
    add("--profile", action="store_true", help="also print what a run spends its time on")
    add("--peak-tflops", type=float, help="of the device, for the utilisation; default: an H100")
    return parser.parse_args()


Run = Callable[[], Any]
MakeRun = Callable[[nn.Module, Batch, argparse.Namespace], Run]


def compare(args: argparse.Namespace, make_run: MakeRun, inference: bool) -> None:
    """Time both detectors of each pair in turns; one JSON line last.

    Args:
        args: from `arguments`.
        make_run: makes a function that does what is timed once, from a detector in eval mode (for
            inference) or train mode, the batch and `args`.
        inference: whether to let candidates pass the score threshold.
    """
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    name = torch.cuda.get_device_name() if args.device == "cuda" else f"CPU, {args.threads} thread"
    clock = "processor" if uses_processor_time(args) else "wall"
    print(f"torch {torch.__version__}, {name}, amp {args.amp}, {clock} seconds")
    batch = random_batch(args.images, args.side, args.boxes, device)
    results = {}
    for detector in args.detectors:
        theirs, ours = (m.to(device).train(not inference) for m in build_pair(detector))
        if args.channels_last:
            theirs.to(memory_format=torch.channels_last)
        if inference:
            share_threshold(theirs, ours, batch)
        if args.compile:
            compile_both(theirs.detector, ours)
        runs = {"theirs": make_run(theirs, batch, args), "ours": make_run(ours, batch, args)}
        results[detector] = result = timings(runs, args)
        if args.profile:
            for who, run in runs.items():
                result[f"shares_{who}"] = shares(run)
        print_result(detector, result)
    print(json.dumps({"device": name, "settings": vars(args), "results": results}))


def compile_both(theirs: nn.Module, ours: nn.Module) -> None:
    """Backbone, neck and head of both as graphs; theirs has the neck in its backbone."""
    for part in (theirs.backbone, getattr(theirs, "head", None)):
        if part is not None:
            part.compile(dynamic=True)
    compile_layers(ours, "model")


def timings(runs: dict[str, Run], args: argparse.Namespace) -> dict[str, float]:
    """Median seconds of both, the median of the pairs' ratios, and what follows from them."""
    for _ in range(args.warmup):
        for run in runs.values():
            run()
    seconds: dict[str, list[float]] = {who: [] for who in runs}
    for number in range(args.pairs):
        for who in list(runs)[:: -1 if number % 2 else 1]:  # each goes first as often
            seconds[who].append(timed(runs[who], args))
    result = {who: statistics.median(values) for who, values in seconds.items()}
    pairs = zip(seconds["theirs"], seconds["ours"], strict=True)
    result["theirs_per_ours"] = statistics.median(a / b for a, b in pairs)
    with contextlib.redirect_stdout(None), FlopCounterMode(display=False) as counter:
        runs["ours"]()
    result["tflop"] = counter.get_total_flops() / 1e12
    result["images_per_second"] = args.images / result["ours"]
    if args.device == "cuda":
        peak = args.peak_tflops or PEAK[args.amp]
        result["peak_tflops"] = peak
        result["utilisation"] = result["tflop"] / result["ours"] / peak
    return result


def uses_processor_time(args: argparse.Namespace) -> bool:
    """Whether the processor time of this process is what a run takes."""
    return args.device == "cpu" and args.threads == 1


def timed(run: Run, args: argparse.Namespace) -> float:
    """Seconds of one run."""
    clock = time.process_time if uses_processor_time(args) else time.perf_counter
    if args.device == "cuda":
        torch.cuda.synchronize()
    start = clock()
    run()
    if args.device == "cuda":
        torch.cuda.synchronize()
    return clock() - start


def precision(args: argparse.Namespace) -> contextlib.AbstractContextManager[None]:
    """The autocast context of a run."""
    return autocast(torch.device(args.device), args.amp)


def print_result(detector: str, result: dict[str, Any]) -> None:
    """One line per detector, and one per profile."""
    line = (
        f"  {detector:12} theirs {result['theirs']:7.3f} s, ours {result['ours']:7.3f} s, "
        f"theirs / ours {result['theirs_per_ours']:.3f}; {result['images_per_second']:.1f} images/s"
        f", {result['tflop']:.3f} TFLOP counted"
    )
    if "utilisation" in result:
        line += f", {result['utilisation']:.3f} of {result['peak_tflops']:g} TFLOP/s"
    print(line)
    for who in ("theirs", "ours"):
        if f"shares_{who}" in result:
            found = result[f"shares_{who}"]
            print(f"    {who:6} " + ", ".join(f"{kind} {found[kind]:.1%}" for kind in KINDS))
            print("           else: " + ", ".join(f"{k} {v:.1%}" for k, v in found["top"].items()))
