"""Which share of a run's time goes into convolutions, matrix products, RoIAlign, and all else."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

KINDS = ("convolution", "matrix product", "RoIAlign", "everything else")
PATTERNS = {
    "convolution": r"aten::(mkldnn_|cudnn_|thnn_|_slow_|_)?conv.*",
    "matrix product": r"aten::(addmm|mm|bmm|baddbmm|matmul|linear|mkldnn_linear)",
    "RoIAlign": r"torchvision::_?roi_align.*|.*torchvision_roi_align.*",
}
LARGEST = 8  # of the other operations are named


def shares(run: Callable[[], Any]) -> dict[str, Any]:
    """Profile one run.

    Returns:
        The share of each of `KINDS` in 0..1, and `top`: those of the largest operations among
        everything else, which contains Python and whatever the profiler does not name, too.
    """
    on_cuda = torch.cuda.is_available()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_cuda else [])]
    with profile(activities=activities) as profiler, torch.profiler.record_function("run"):
        run()
    key = "self_device_time_total" if on_cuda else "self_cpu_time_total"
    events = {e.key: getattr(e, key) for e in profiler.key_averages()}
    total = sum(events.values())
    found = dict.fromkeys(KINDS, 0.0)
    others = {}
    for name, microseconds in events.items():
        kind = next((k for k, p in PATTERNS.items() if re.fullmatch(p, name)), KINDS[-1])
        found[kind] += microseconds / total
        if kind == KINDS[-1]:
            others[name] = microseconds / total
    top = sorted(others.items(), key=lambda item: -item[1])[:LARGEST]
    return {**found, "top": dict(top)}
