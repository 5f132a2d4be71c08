"""A loss, a gradient or weights that are not finite stop a run before they spoil it.

The error names the images and the loss term, and a file in the run directory holds all that the
step was computed from: `python -m aligndet.replay` computes it again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from aligndet import checkpoint, dist
from aligndet.config import Config, plain
from aligndet.run_directory import RunDirectory
from data.counting import names
from data.errors import StorageError
from data.loaders import to_device

MOST_NAMES = 8  # of images in an error
START_OVER = "start over with --resume none"


class Part(NamedTuple):
    """What one forward pass of a step is computed from, apart from the weights."""

    batch: Any
    seed: int  # of everything random in it


class FiniteGuard:
    """Checks the numbers of each step.

    Args:
        task: what is trained.
        config: of the run.
        run: where the file goes.
        scaler: of the loss; when it is on (fp16), it leaves out steps with infinite gradients.
        start: the first step of this process.
    """

    def __init__(
        self,
        task: nn.Module,
        config: Config,
        run: RunDirectory,
        scaler: torch.amp.GradScaler,
        start: int,
    ) -> None:
        self.task, self.config, self.run, self.scaler = task, config, run, scaler
        self.start = start

    def check_loss(
        self, loss: Tensor, losses: dict[str, Tensor], step: int, parts: Sequence[Part]
    ) -> None:
        """Stop at a loss that is not finite, before its gradients spoil the weights.

        Args:
            loss: the sum of `losses`.
            losses: the terms.
            step: steps done so far.
            parts: of the step so far; the loss is of the last one.

        Raises:
            FloatingPointError: it is not finite.
        """
        if torch.isfinite(loss):
            return
        terms = {name: value.item() for name, value in losses.items()}
        said = ", ".join(f"{name}={value:g}" for name, value in terms.items())
        problem = f"the loss is not finite at step {step} ({said})"
        raise self._error(problem, step, parts, terms)

    def check_gradient(
        self, norm: Tensor, losses: dict[str, Tensor], step: int, parts: Sequence[Part]
    ) -> None:
        """Stop at a gradient that is not finite, before the optimiser's step.

        Args:
            norm: of the whole gradient, not yet clipped.
            losses: the terms of the last part.
            step: steps done so far.
            parts: of the step.

        Raises:
            FloatingPointError: it is not finite, and no loss scaler leaves the step out.
        """
        if self.scaler.is_enabled() or torch.isfinite(norm):
            return
        gradients = ((n, p.grad) for n, p in self.task.named_parameters() if p.grad is not None)
        bad = not_finite(gradients)
        where = f"in {names(bad)}" if bad else "each entry is, but they are too large"
        problem = f"the gradient is not finite at step {step} ({where})"
        raise self._error(problem, step, parts, {n: v.item() for n, v in losses.items()})

    def _error(
        self, problem: str, step: int, parts: Sequence[Part], losses: dict[str, float]
    ) -> FloatingPointError:
        """What to raise; leaves the file."""
        undo = getattr(self.task, "undo_forward", None)
        if undo is not None:
            undo()
        bad = weights_not_finite(self.task)
        if bad:
            problem = f"the weights are not finite before step {step}: {names(bad)}"
        of_batch = image_names(parts[-1].batch)
        if of_batch and not bad:
            problem += f"; its images: {names(of_batch, MOST_NAMES)}"
        if dist.world_size() > 1:
            problem += f"; on rank {dist.rank()}"
        remedy = self._remedy_of_weights(step) if bad else self._remedy()
        return FloatingPointError(f"{problem}; {self._saved(step, parts, losses)}; {remedy}")

    def _saved(self, step: int, parts: Sequence[Part], losses: dict[str, float]) -> str:
        """Write the file; where it is, or why it could not be written."""
        path = self.run.path / file_name()
        content = {
            "stage": self.run.inputs.get("stage"),
            "config": plain(self.config),
            "num_classes": getattr(self.task, "num_classes", None),
            "step": step,
            "rank": dist.rank(),
            "processes": dist.world_size(),
            "loss_scale": self.scaler.get_scale(),
            "threads": torch.get_num_threads(),
            "losses": losses,  # of the last part
            "parts": [to_device(part._asdict(), torch.device("cpu")) for part in parts],
            "model": self.task.state_dict(),
        }
        try:
            checkpoint.save(content, path)
        except StorageError as error:
            return f"the step could not be saved ({error})"
        return f"`python -m aligndet.replay {path}` shows where"

    def _remedy(self) -> str:
        changes = ["lower optim.lr"]
        if self.config.optim.clip_norm is None:
            changes.append("set optim.clip_norm")
        if self.config.amp != "none":
            changes.append("set amp=none")
        return f"{' or '.join(changes)}, and {START_OVER}"

    def _remedy_of_weights(self, step: int) -> str:
        if step > self.start:
            return f"the update of step {step - 1} made them so: {self._remedy()}"
        if step:
            return f"the checkpoint holds them so: give --resume an older one, or {START_OVER}"
        return "they come from model.backbone_weights or --init: give another file"


def check_weights(task: nn.Module, step: int) -> None:
    """Stop before weights that are not finite are saved.

    Args:
        task: what is trained.
        step: steps done.

    Raises:
        FloatingPointError: a weight is not finite.
    """
    bad = weights_not_finite(task)
    if bad:
        raise FloatingPointError(
            f"the weights are not finite after step {step - 1}: {names(bad)}; they are not saved; "
            "lower optim.lr or set optim.clip_norm, and " + START_OVER
        )


def weights_not_finite(task: nn.Module) -> list[str]:
    """Names of the parameters that hold NaN or infinity, and of buffers that a forward pass does
    not change: a pass that fails leaves its NaN in the running statistics of BatchNorm."""
    return not_finite(_constants(task))


def _constants(task: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from task.named_parameters()
    for prefix, module in task.named_modules():
        if not module.training:
            yield from module.named_buffers(prefix, recurse=False)


def not_finite(tensors: Iterator[tuple[str, Tensor]]) -> list[str]:
    """Names of the tensors that hold NaN or infinity."""
    # NaN and infinity stay in the sum, which is quick; it may overflow without them.
    return [
        name
        for name, tensor in tensors
        if not torch.isfinite(tensor.sum()) and not torch.isfinite(tensor).all()
    ]


def image_names(batch: Any) -> list[str]:
    """File names of the images of a batch; empty if it does not know them."""
    if isinstance(batch, (list, tuple)):
        batch = batch[0] if batch else None  # the views are of the same images
    return list(batch.get("names", ())) if isinstance(batch, dict) else []


def file_name() -> str:
    """The file of this rank."""
    return "nonfinite.pt" if dist.is_main() else f"nonfinite_rank{dist.rank()}.pt"
