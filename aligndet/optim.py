"""Optimiser and learning-rate schedule."""

from __future__ import annotations

import bisect
import math
from dataclasses import dataclass

import torch
from torch import nn

from aligndet.parameter_groups import parameter_groups
from data.counting import count
from models.checks import require_choice, require_range


@dataclass(frozen=True)
class OptimConfig:
    """The `optim` section."""

    name: str = "sgd"  # sgd or adamw
    lr: float = 0.01  # for a global batch of base_batch images
    # Factor on the backbone's learning rate, since its weights are already trained;
    # model.frozen_stages=5 freezes it altogether.
    backbone_lr_scale: float = 1.0
    layer_decay: float = 1.0  # once more for each block of the backbone, from the last to the first
    base_batch: int | None = None  # scale lr linearly from this global batch; null: use lr as it is
    weight_decay: float = 1e-4
    decay_norm_and_bias: bool = True  # off: no weight decay on these, nor on position tables
    momentum: float = 0.9  # of sgd
    clip_norm: float | None = None  # cap of the gradient's norm
    # Batches whose gradients make one step. Each divides its losses by its own positives, so the
    # step is not exactly that of one large batch, as it is with more ranks.
    accumulate: int = 1

    def __post_init__(self) -> None:
        require_choice("optim.name", self.name, ("sgd", "adamw"))
        for key in ("lr", "backbone_lr_scale", "clip_norm"):
            require_range(f"optim.{key}", getattr(self, key), above=0)
        for key in ("accumulate", "base_batch"):
            require_range(f"optim.{key}", getattr(self, key), least=1)
        require_range("optim.layer_decay", self.layer_decay, above=0, most=1)
        require_range("optim.weight_decay", self.weight_decay, least=0)
        require_range("optim.momentum", self.momentum, least=0, most=1)

    def scaled_lr(self, global_batch: int) -> float:
        """Peak learning rate for `global_batch` images per step (Goyal et al., linear scaling)."""
        return self.lr if self.base_batch is None else self.lr * global_batch / self.base_batch


@dataclass(frozen=True)
class ScheduleConfig:
    """The `schedule` section. Below 1, a milestone and the warm-up are fractions of the length."""

    epochs: int | None = None  # length of the run: either this
    iterations: int | None = None  # or this
    min_iterations: int = 1  # with epochs: a run on few images has at least this many steps
    decay: str = "step"  # step or cosine
    milestones: tuple[float, ...] = ()  # when step decays; from 1 on in the unit of the length
    gamma: float = 0.1  # factor at each milestone
    warmup_iterations: float = 0.05  # linear, from warmup_factor of the peak; from 1 on in steps
    warmup_factor: float = 0.001

    def __post_init__(self) -> None:
        if (self.epochs is None) == (self.iterations is None):
            raise ValueError("set exactly one of schedule.epochs and schedule.iterations")
        require_range("schedule.epochs", self.epochs, least=1)
        require_range("schedule.iterations", self.iterations, least=1)
        require_range("schedule.min_iterations", self.min_iterations, least=1)
        require_range("schedule.warmup_iterations", self.warmup_iterations, least=0)
        require_choice("schedule.decay", self.decay, ("step", "cosine"))
        for milestone in self.milestones:
            require_range("schedule.milestones", milestone, above=0)
        if self.iterations is not None:  # an unreachable length is known before the data are read
            Schedule.build(self, peak=1.0, steps_per_epoch=1.0)


@dataclass(frozen=True)
class Schedule:
    """Learning rate as a pure function of the step."""

    peak: float
    total_steps: int
    warmup_steps: int
    milestone_steps: tuple[float, ...]  # in ascending order; empty: cosine decay, or none
    config: ScheduleConfig
    steps_per_epoch: float  # may be a fraction, with accumulation

    @classmethod
    def build(cls, config: ScheduleConfig, peak: float, steps_per_epoch: float) -> Schedule:
        """Resolve all lengths to steps.

        Raises:
            ValueError: the warm-up or a milestone does not end before the run.
        """
        total, unit = config.iterations, 1.0
        if config.epochs is not None:
            total, unit = round(config.epochs * steps_per_epoch), steps_per_epoch
            if total < config.min_iterations:  # its epochs are as many, but longer
                total, unit = config.min_iterations, config.min_iterations / config.epochs
        warmup = round(_steps(config.warmup_iterations, 1.0, total))
        if warmup >= max(1, total):
            raise ValueError(
                f"schedule.warmup_iterations is {config.warmup_iterations:g}, but the run has "
                f"{count(total, 'step')}; lower it, or give a fraction of the run, such as 0.05"
            )
        milestones = config.milestones if config.decay == "step" else ()
        for milestone in milestones:
            if _steps(milestone, unit, total) >= total:
                length = (
                    count(config.epochs, "epoch") if config.epochs else count(total, "iteration")
                )
                raise ValueError(
                    f"schedule.milestones has {milestone:g}, but the run has {length}; lower it, "
                    "or give fractions of the run, such as [0.67,0.92]"
                )
        steps = sorted(_steps(milestone, unit, total) for milestone in milestones)
        return cls(peak, total, warmup, tuple(steps), config, steps_per_epoch)

    def lr(self, step: int) -> float:
        """Learning rate of step 0..total_steps - 1."""
        config = self.config
        warmup = 1.0
        if step < self.warmup_steps:
            progress = step / self.warmup_steps
            warmup = config.warmup_factor + (1 - config.warmup_factor) * progress
        if config.decay == "cosine":
            return self.peak * warmup * 0.5 * (1 + math.cos(math.pi * step / self.total_steps))
        return self.peak * warmup * config.gamma ** bisect.bisect_right(self.milestone_steps, step)


def _steps(length: float, unit: float, total: int) -> float:
    """Steps of a length in a unit of so many steps or, below 1, as a fraction of the run."""
    return length * total if length < 1 else length * unit


def build_optimizer(
    model: nn.Module, config: OptimConfig, fused: bool = True
) -> torch.optim.Optimizer:
    """Optimiser over the trainable parameters; in every step the loop sets the learning rate of
    each group to the schedule's times the group's `lr_scale`.

    Args:
        model: what is trained.
        config: of the optimiser.
        fused: let SGD pass over the weights once instead of four times, with the same bits; not
            for use with a loss scaler, which could then not leave out a step.
    """
    options = parameter_groups(
        model,
        config.weight_decay,
        config.decay_norm_and_bias,
        config.backbone_lr_scale,
        config.layer_decay,
    )
    if config.name == "adamw":
        return torch.optim.AdamW(options, lr=config.lr)
    return torch.optim.SGD(options, lr=config.lr, momentum=config.momentum, fused=fused)
