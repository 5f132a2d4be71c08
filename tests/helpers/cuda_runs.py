"""Tiny runs of the product's commands on the stand-in for a GPU, and what is wrong with them."""

from __future__ import annotations

import contextlib
import importlib
import linecache
import sys
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch

from tests.helpers import cuda_rules
from tests.helpers.cuda_stand_in import ROOT, CudaStandIn
from tests.helpers.narrow_backbones import narrow_backbones

# Few samples and proposals, so that some are drawn; small anchors for small images.
LITTLE = {"channels": 32, "num_convs": 1, "score_threshold": 0.001}
OPTIONS: dict[str, dict[str, Any]] = {
    "fcos": LITTLE,
    "retinanet": {**LITTLE, "anchor_size": 2.0},
    "faster_rcnn": {
        **{"channels": 32, "box_features": 64, "rpn_anchor_size": 4.0, "roi_size": 5},
        **{"topk_train": 200, "proposals_train": 50},
    },
}
OPTIONS["detr"] = {
    **{"width": 32, "heads": 4, "encoder_layers": 1, "decoder_layers": 2, "feedforward": 64},
    **{"queries": 20, "anchors": True},
}
OPTIONS["mask_rcnn"] = {**OPTIONS["faster_rcnn"], "mask_convs": 1, "mask_roi_size": 7}
METHODS = ("moco_v2", "simmim", "supervised")
# How often the host may wait for the device in a step that neither logs, saves nor evaluates, with
# two images (four in the image domain). Each wait leaves the device idle for as long as it takes to
# fill its queue again.
MOST_WAITS = {
    "box fcos": 6,
    "box retinanet": 6,
    "box faster_rcnn": 22,
    "fine fcos": 4,
    "fine retinanet": 5,
    "fine faster_rcnn": 14,
    "box mask_rcnn": 24,
    "fine mask_rcnn": 16,
    "box detr": 7,  # the queries are matched with the boxes of each view
    "fine detr": 4,
    "image moco_v2": 1,
    "image simmim": 1,
    "image supervised": 1,
}
STEPS = 3
COUNTED = 2  # of these, the step whose waits count; its images have a size that was met before
SMALL = 500  # elements; the CPU may do work on so few in a step
DTYPES = {"none": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
IN_FLOAT32 = ("self.p6(", "self.p7(")  # convolutions that models/fpn.py keeps out of autocast


def settings(stage: str, amp: str = "none", **changes: Any) -> dict[str, Any]:
    """Changes to the tiny config of `conftest.py`.

    Args:
        stage: `box` or `fine`, and a detector; or `image`, and a method.
        amp: as in a config.
        changes: more of them.
    """
    kind, what = stage.split()
    result = {
        **{"device": "cuda", "amp": amp, "schedule__iterations": STEPS},
        **{"loop__log_every": 100, "loop__checkpoint_every": 100},
    }
    if kind == "image":
        moco = {"queue": 8, "embedding_width": 16}
        image = {"method": what, "crop_size": 64, "norm_groups": 2, "moco": moco}
        result |= {"data__batch_size": 4, "image": image, "data__train__annotations": None}
        result |= {"model__backbone": "swin_t"} if what == "simmim" else {}
    else:
        result |= {"model__detector": what, "model__options": OPTIONS[what]}
        result |= {"box_domain__samples": 64, "optim__lr": 0.001}
    if kind == "fine":
        result |= {"optim__name": "adamw", "optim__clip_norm": 1.0}
    return result | changes


def train(stage: str, config: Any, *arguments: Any) -> None:
    """Run the command of a stage."""
    if stage.startswith("fine"):
        call("finetune", "--config", config, *arguments)
    else:
        name = "image" if stage.startswith("image") else "box"
        call("pretrain", "--stage", name, "--config", config, *arguments)


@narrow_backbones()
def call(module: str, *arguments: Any) -> None:
    """`main()` of a script or module of the product."""
    with mock.patch.object(sys, "argv", [module, *map(str, arguments)]):
        status = importlib.import_module(module).main()
    assert not status, f"{module} ended with status {status}"


@contextlib.contextmanager
def on_stand_in(**options: Any) -> Iterator[CudaStandIn]:
    """A stand-in that counts the steps of training, with gloo in the place of NCCL."""
    gpu = CudaStandIn(**options)
    zero_grad = torch.optim.Optimizer.zero_grad
    join = torch.distributed.init_process_group

    def counted(self, *args, **kwargs):  # the first call of a step
        gpu.step += gpu.place().startswith("train.py")
        zero_grad(self, *args, **kwargs)

    def join_by_gloo(backend, device_id=None, **kwargs):
        assert device_id == torch.device("cuda", gpu.current), device_id
        gpu.backend = backend
        join("gloo", **kwargs)

    with (
        mock.patch.object(torch.optim.Optimizer, "zero_grad", counted),
        mock.patch.object(torch.distributed, "init_process_group", join_by_gloo),
        gpu,
    ):
        yield gpu


def faults(gpu: CudaStandIn, amp: str = "none", workers: bool = False) -> list[str]:
    """What no run should do on a GPU, in words.

    Args:
        gpu: on which it ran.
        amp: in which precision.
        workers: whether workers loaded the batches, which is what gives pinned memory.
    """
    found = [
        f"{name} in {dtype} with amp={amp}: {place}"
        for name, dtype, place in gpu.ran_in
        if dtype is not DTYPES[amp] and not any(layer in line_at(place) for layer in IN_FLOAT32)
    ]
    for work, elements in gpu.on_cpu.items():
        loads = work.place.startswith("data/")
        if work.step == COUNTED and elements > SMALL and not loads:
            found.append(f"{work.operation} on the CPU ({elements} elements): {work.place}")
    for wait in gpu.waits:
        if wait.step and wait.what == cuda_rules.CPU_INDEX:
            found.append(f"{wait.place}: {wait.what}")
    for place, elements in gpu.unpinned.items():
        if workers and elements > SMALL:
            found.append(f"copied from memory that is not pinned ({elements} elements): {place}")
    return found


def line_at(place: str) -> str:
    """The source of a place such as `models/fpn.py:74`."""
    file, _, number = place.rpartition(":")
    return linecache.getline(str(ROOT / file), int(number)) if number.isdecimal() else ""


def waits_of_a_step(gpu: CudaStandIn) -> list[tuple[int, str]]:
    """How often the host waited in step `COUNTED`, and where; most first."""
    waits = [(times, w) for w, times in gpu.waits.items() if w.step == COUNTED]
    return sorted(((times, f"{w.place}: {w.what}") for times, w in waits), reverse=True)


def too_many_waits(stage: str, gpu: CudaStandIn) -> str | None:
    """A message with the places that wait, if they are more than the stage may have."""
    waits = waits_of_a_step(gpu)
    total = sum(times for times, _ in waits)
    if total <= MOST_WAITS[stage]:
        return None
    lines = "\n".join(f"  {times:3} {where}" for times, where in waits)
    return f"{stage}: the host waits {total} times per step, at most {MOST_WAITS[stage]}:\n{lines}"
