"""The training loop, shared by all stages: image domain, box domain and fine-tuning.

Read `fit` from top to bottom; there are no hooks. A stage is a *task*: a module whose `forward`
takes a batch and returns losses and statistics, and whose `update_target` is called after each
optimiser step (`MoCo`, `SimMIM`, `Supervised`, `BoxDomain`, `FineTuning`).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from aligndet import checkpoint, dist
from aligndet.amp import SkippedSteps, autocast, grad_scaler
from aligndet.compiling import compile_layers
from aligndet.config import Config, plain
from aligndet.health import Health
from aligndet.nonfinite import FiniteGuard, Part, check_weights
from aligndet.optim import Schedule, build_optimizer
from aligndet.run_directory import RunDirectory, say
from data import stopping
from data.bad_images import NotingCollate, Replacing, without_news
from data.counting import count
from data.errors import DataError
from data.loaders import GroupedBatchSampler, Loader, iterate, to_device, train_loader
from data.normalise import normalise_batch


def fit(
    task: nn.Module,
    batches: Batches,
    config: Config,
    run: RunDirectory,
    resume: dict[str, Any] | None,
    device: torch.device,
    evaluate: Callable[[int], dict[str, float | None]] | None = None,
) -> None:
    """Train `task` to the end of its schedule.

    Args:
        task: see `Task`; moved to `device`.
        batches: its data.
        config: of the run.
        run: where to log and save.
        resume: checkpoint to resume from, see `run.find`.
        device: of this process.
        evaluate: called on all ranks every `evaluation.every` steps, with the number of steps done.

    Raises:
        FloatingPointError: a loss, the gradient or weights are not finite, see `FiniteGuard`.
        DataError: an image cannot be read; the steps done so far are saved first.
        StorageError: the run directory cannot be written.
        RankError: the ranks' weights differ.
        Stopped: a signal came; the steps done so far are saved first.
    """
    schedule = build_schedule(config, batches)
    accumulate, total = config.optim.accumulate, schedule.total_steps
    task.to(device, memory_format=torch.channels_last)  # convolutions are faster: oneDNN, cuDNN
    compile_layers(task, config.compile)
    optimizer = build_optimizer(task, config.optim, fused=config.amp != "fp16")
    state = State(task, optimizer, grad_scaler(device, config.amp), run, config)
    start = state.restore(resume)
    model = dist.synchronised(task) if dist.in_group() else task
    loader = batches.loader(config, start * accumulate, device)
    stream = without_news(iterate(loader), run.skipped.note)
    meter = Meter(run, start, schedule.steps_per_epoch, images_per_step(config))
    skipped = SkippedSteps(optimizer, state.scaler, start)
    guard = FiniteGuard(task, config, run, state.scaler, start)
    health = Health(schedule.warmup_steps, total, getattr(task, "loss_at_chance", None))

    def evaluate_after(step: int) -> None:
        with stopping.released():  # the state is saved, and stays as it is
            scores = evaluate(step)
        meter.log_evaluation(step, scores)
        say(f"step {step}", scores)

    task.train()
    due = config.evaluation.due if evaluate else lambda step: False
    bar = tqdm(range(start, total), initial=start, total=total, disable=not dist.is_main())
    with bar, stopping.held(), contextlib.closing(stream):
        if due(start) and 0 < start < total and not run.was_evaluated(start):
            evaluate_after(start)  # the run ended before it was done
        for step in bar:
            lr = schedule.lr(step)
            for group in optimizer.param_groups:
                group["lr"] = lr * group.get("lr_scale", 1.0)  # older checkpoints have none
            done = step + 1
            logging = done % config.loop.log_every == 0 or done == total

            optimizer.zero_grad(set_to_none=True)
            logged = []  # of each part of the step
            with state.saved_on_error(step):
                parts = next_parts(stream, config, step)
            for number, (batch, seed) in enumerate(parts):
                torch.manual_seed(seed)
                batch = normalise_batch(to_device(batch, device))
                with no_sync(model, number < accumulate - 1), autocast(device, config.amp):
                    losses, statistics = model(batch, logging)
                loss = torch.stack(list(losses.values())).sum()
                guard.check_loss(loss, losses, step, parts[: number + 1])
                state.scaler.scale(loss / accumulate).backward()
                logged.append({"loss": loss, **losses, **statistics})

            if config.optim.clip_norm is not None:
                state.scaler.unscale_(optimizer)
                norm = gradient_norm(task)
                guard.check_gradient(norm, losses, step, parts)
                nn.utils.clip_grads_with_norm_(task.parameters(), config.optim.clip_norm, norm)
            state.scaler.step(optimizer)
            state.scaler.update()
            target = task.update_target(step, total)  # pre-training: the EMA of the target branch

            if logging:
                means = dist.mean_over_ranks_of(mean_of_parts(logged))
                values = {**means, **target, **skipped.log(done), "lr": lr}
                meter.log(done, values)
                if dist.is_main():
                    health.watch(done, values)
                bar.set_postfix(loss=f"{means['loss']:.3f}", lr=f"{lr:.2g}", refresh=False)
            signal = dist.highest_over_ranks(stopping.requested())  # all stop after the same step
            evaluating = due(done) and done < total
            if signal or evaluating or done == total or done % config.loop.checkpoint_every == 0:
                dist.check_same_weights(task)
                state.save(done)
            elif state.is_old():
                state.save(done)
            if signal:
                raise stopping.Stopped(signal, state.kept(done))
            if evaluating:
                evaluate_after(done)
    if dist.is_main() and (lost := skipped.summary()):
        print(lost)


class Task(Protocol):
    """What `fit` trains; an `nn.Module`.

    It may also have `num_classes`; `loss_at_chance`, the loss as long as nothing is learned; and
    `undo_forward`, which takes back what forward passes have changed since the last step.
    """

    def __call__(
        self, batch: Any, with_statistics: bool
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Losses to sum, and statistics to log, if they are wanted; all are scalars."""

    def update_target(self, step: int, total_steps: int) -> dict[str, float]:
        """Move the momentum target, if the stage has one; returns values to log."""


@dataclass(frozen=True)
class Batches:
    """Where training batches come from."""

    dataset: Any  # indexed by data.views.SampleKey
    aspect_ratios: list[float]  # height / width of each image
    collate: Callable[[list[Any]], Any]
    distinct: bool = False  # whether no image may be in a batch twice

    def sampler(self, config: Config, start: int = 0) -> GroupedBatchSampler:
        """Sampler of this rank, starting after `start` batches."""
        return GroupedBatchSampler(
            self.aspect_ratios,
            config.data.batch_size,
            dist.rank(),
            dist.world_size(),
            config.seed,
            start,
        )

    def loader(self, config: Config, start: int, device: torch.device) -> Loader:
        """Endless loader, starting after `start` batches."""
        sampler = self.sampler(config, start)
        pin = device.type == "cuda"
        dataset, collate = self.dataset, self.collate
        if config.data.on_bad_image == "skip":
            dataset = Replacing(dataset, self.aspect_ratios)
            collate = NotingCollate(collate, self.distinct)
        return train_loader(dataset, sampler, collate, config.data.workers, pin)


def global_batch(config: Config) -> int:
    """Number of images of all ranks in one forward pass."""
    return config.data.batch_size * dist.world_size()


def images_per_step(config: Config) -> int:
    """Number of images of all ranks and all parts of an optimiser step."""
    return global_batch(config) * config.optim.accumulate


def build_schedule(config: Config, batches: Batches) -> Schedule:
    """The schedule in optimiser steps, with the learning rate scaled to the images per step.

    Raises:
        ValueError: see `Schedule.build`.
    """
    steps_per_epoch = batches.sampler(config).steps_per_epoch / config.optim.accumulate
    peak = config.optim.scaled_lr(images_per_step(config))
    return Schedule.build(config.schedule, peak, steps_per_epoch)


class State:
    """What changes from step to step, and therefore belongs in last.pt."""

    def __init__(
        self,
        task: nn.Module,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        run: RunDirectory,
        config: Config,
    ) -> None:
        self.task, self.optimizer, self.scaler = task, optimizer, scaler
        self.run, self.config = run, config
        self.saved_at = time.monotonic()

    def is_old(self) -> bool:
        """Whether last.pt is older than `loop.checkpoint_minutes`."""
        minutes = self.config.loop.checkpoint_minutes
        return minutes is not None and time.monotonic() - self.saved_at >= 60 * minutes

    def save(self, step: int, any_rank: bool = False) -> None:
        """Write last.pt, from which a run resumes exactly after `step` steps.

        Args:
            step: how many are done.
            any_rank: by whichever rank calls it, since all hold the same state; else by rank 0.

        Raises:
            FloatingPointError: a weight is not finite.
        """
        if not (any_rank or dist.is_main()):
            return
        check_weights(self.task, step)
        content = {
            "step": step,
            "model": self.task.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "config": plain(self.config),
            "inputs": self.run.inputs,
            "processes": dist.world_size(),
        }
        checkpoint.save(content, self.run.last, self.run.previous)
        self.saved_at = time.monotonic()

    def kept(self, step: int) -> str:
        """What a stopped run has kept, for its last message."""
        return f"saved {count(step, 'step')} in {self.run.last}"

    @contextlib.contextmanager
    def saved_on_error(self, step: int) -> Iterator[None]:
        """Save the `step` steps that are done if the block, which changes nothing, cannot end."""
        try:
            yield
        except (DataError, stopping.Stopped) as error:
            self.save(step, any_rank=True)
            if isinstance(error, stopping.Stopped):
                error.state = self.kept(step)
            raise

    def restore(self, content: dict[str, Any] | None) -> int:
        """Load what `save` wrote; returns the number of steps done.

        Raises:
            DataError: it was written by another version of this project.
        """
        if content is None:
            return 0
        try:
            self.task.load_state_dict(content["model"])
        except RuntimeError:  # names or shapes differ, though the settings are the same
            raise DataError(
                "the checkpoint was written by another version of this project; resume with that "
                "one, choose another output_dir, or start over with --resume none"
            ) from None
        self.optimizer.load_state_dict(content["optimizer"])
        self.scaler.load_state_dict(content["scaler"])
        if dist.is_main():
            print(f"resumed at step {content['step']}")
        return content["step"]


class Meter:
    """Writes lines to metrics.jsonl: values, place in the run, and speed since the last line."""

    def __init__(
        self, run: RunDirectory, start: int, steps_per_epoch: float, images_per_step: int
    ) -> None:
        self.run, self.steps_per_epoch = run, steps_per_epoch
        self.images_per_step = images_per_step
        self.since, self.clock = start, time.perf_counter()

    def log(self, step: int, values: dict[str, float]) -> None:
        """Write a line of training."""
        seconds = time.perf_counter() - self.clock
        speed = (step - self.since) * self.images_per_step / seconds
        self._write(step, {**values, "images_per_second": round(speed, 2)})

    def log_evaluation(self, step: int, values: dict[str, float | None]) -> None:
        """Write a line of evaluation; the time it took does not count as training."""
        self._write(step, values)

    def _write(self, step: int, values: dict[str, Any]) -> None:
        epoch = round(step / self.steps_per_epoch, 4)
        self.run.log({"step": step, "epoch": epoch, **values})
        self.since, self.clock = step, time.perf_counter()


def step_seed(seed: int, step: int, part: int, rank: int) -> int:
    """Seed of everything random in one forward pass."""
    return hash((seed, step, part, rank))  # a hash of integers is the same in every process


def next_parts(stream: Iterator[Any], config: Config, step: int) -> list[Part]:
    """What a step is computed from; all is there before it begins, so that it is done whole or not
    at all. By itself, a process may be stopped while it waits; of several, only between steps."""
    parts = []
    with contextlib.nullcontext() if dist.in_group() else stopping.released():
        for part in range(config.optim.accumulate):
            # Seeded by position, so resuming needs no saved RNG state.
            seed = step_seed(config.seed, step, part, dist.rank())
            parts.append(Part(next(stream), seed))
    return parts


def mean_of_parts(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of each scalar over the parts of a step; parts have the same keys."""
    return {key: torch.stack([part[key].detach() for part in parts]).mean() for key in parts[0]}


def gradient_norm(task: nn.Module) -> Tensor:
    """The norm of the gradient of all parameters together, a scalar."""
    return nn.utils.get_total_norm([p.grad for p in task.parameters() if p.grad is not None])


def no_sync(model: nn.Module, more_to_come: bool) -> contextlib.AbstractContextManager[None]:
    """Keep DDP from averaging gradients that are not complete yet."""
    if more_to_come and isinstance(model, DistributedDataParallel):
        return model.no_sync()
    return contextlib.nullcontext()
