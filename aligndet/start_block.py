"""What a run prints before its first step: what it reads, how long it trains, where it runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from aligndet import dist
from aligndet.config import Config
from aligndet.optim import Schedule
from data.coco import CocoDataset
from data.counting import count
from data.plain_text import say
from data.proposals.searched_images import SearchedImages
from data.views import BoxSource
from models.backbone_base import StagedBackbone


def print_start(
    title: str,
    data: Mapping[str, str | Sequence[str]],
    config: Config,
    schedule: Schedule,
    device: torch.device,
    weights: Sequence[str],
) -> None:
    """Print the block, on rank 0.

    Args:
        title: what is trained.
        data: lines about the images, by split.
        config: of the run.
        schedule: of the run.
        device: of this process.
        weights: where the weights come from.
    """
    if not dist.is_main():
        return
    rows = {
        **data,
        "steps": _steps(config, schedule),
        "rate": _rate(config, schedule),
        "device": _device(config, device),
        "output": config.output_dir,
        "weights": weights,
    }
    say(title)
    for label, content in rows.items():
        for line in [content] if isinstance(content, str) else content:
            say(f"  {label:9}{line}")
            label = ""  # only before the first line


def backbone_lines(backbone: StagedBackbone, frozen_stages: int) -> list[str]:
    """Where a backbone's weights come from.

    Args:
        backbone: as built.
        frozen_stages: how many of its stages this run does not train.
    """
    if backbone.origin:
        return backbone.origin.summary().splitlines()
    stay = f"; of its 5 stages, {frozen_stages} do not train and stay so"
    note = "model.backbone_weights is not set: the backbone is random"
    return [note + (stay if frozen_stages else "")]


def resumed_from(state: Mapping[str, Any] | None) -> list[str]:
    """Where the weights of a resumed run come from; empty for a new one."""
    return [f"last.pt, step {state['step']:,}"] if state else []


def proposal_lines(config: Config, source: BoxSource) -> list[str]:
    """What there is to pre-train on."""
    if isinstance(source, SearchedImages):
        images = count(len(source), "image")
        return [
            f"{images}; data.train.proposals is not set: boxes are searched for in",
            f"the first epoch, which takes longer, and kept in {config.data.proposal_cache}",
            "(`python -m data.proposals` writes a file beforehand)",
            *source.notes,
        ]
    most = config.box_domain.max_proposals
    return label_lines(source) + ([f"the best {most} boxes of each image"] if most else [])


def label_lines(coco: CocoDataset) -> list[str]:
    """What there is to train or evaluate on."""
    return [*coco.contents.lines(), *coco.notes]


def shortened(names: Sequence[str], most: int = 8) -> str:
    """Names in a row, the first few of many."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def _steps(config: Config, schedule: Schedule) -> str:
    images = config.data.batch_size * dist.world_size() * config.optim.accumulate
    epochs = schedule.total_steps / schedule.steps_per_epoch
    line = f"{schedule.total_steps:,} of {images} images ({epochs:.3g} epochs)"
    every = config.evaluation.every
    return line + (f", evaluated every {every:,}" if every else "")


def _rate(config: Config, schedule: Schedule) -> str:
    base = config.optim.base_batch
    scaled = f" (scaled from {config.optim.lr:g} for {base} images)" if base else ""
    steps = schedule.warmup_steps
    warmup = f", {count(steps, 'step')} of warm-up" if steps else ""
    at = ", ".join(f"{step:,.0f}" for step in schedule.milestone_steps)
    decay = f"times {config.schedule.gamma:g} at step {at}" if at else "constant"
    if config.schedule.decay == "cosine":
        decay = "cosine decay"
    return f"{schedule.peak:g} at its peak{scaled}{warmup}, {decay}, {config.optim.name}"


def _device(config: Config, device: torch.device) -> str:
    where = f"CPU, {count(torch.get_num_threads(), 'thread')}"
    if device.type == "cuda":
        where = torch.cuda.get_device_name(device)
    precision = {"none": "float32", "bf16": "bfloat16", "fp16": "float16"}[config.amp]
    processes = count(dist.world_size(), "process")
    return f"{where}, {precision}, {processes}, data.workers {config.data.workers}"
