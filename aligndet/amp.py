"""Mixed precision by name, and the steps that fp16 loses."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch

FEW_STEPS = 20  # halve the first scale, 65,536, to far below 1
GROWTH_INTERVAL = 2000  # steps after which a scaler tries the double, which may cost a step
AMP_DTYPES = {"none": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device: torch.device, amp: str) -> AbstractContextManager[None]:
    """The autocast context of an `amp` setting; `none` gives one that does nothing."""
    dtype = AMP_DTYPES[amp]
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


def grad_scaler(device: torch.device, amp: str) -> torch.amp.GradScaler:
    """The loss scaler; it does nothing unless `amp` is fp16, whose gradients can underflow."""
    return torch.amp.GradScaler(device.type, growth_interval=GROWTH_INTERVAL, enabled=amp == "fp16")


class SkippedSteps:
    """Counts the steps that the loss scaler leaves out because a gradient is infinite.

    It asks the optimiser, which is not called then, and nothing of the device in between.

    Args:
        optimizer: of the run.
        scaler: its loss scaler; if that is off, there is nothing to count.
        start: steps done so far.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, start: int
    ) -> None:
        self.scaler, self.start, self.since = scaler, start, start
        self.taken = self.total = 0
        optimizer.register_step_post_hook(self._count)

    def _count(self, *_: object) -> None:
        self.taken += 1

    def log(self, step: int) -> dict[str, float]:
        """What to log after `step` steps: `skipped_steps` since the last line, and the scaler's
        `loss_scale`; nothing without a scaler."""
        skipped = step - self.since - self.taken
        self.since, self.taken = step, 0
        self.total += skipped
        if not self.scaler.is_enabled():
            return {}
        return {"skipped_steps": skipped, "loss_scale": self.scaler.get_scale()}

    def summary(self) -> str | None:
        """A sentence at the end of the run, if more steps were left out than a scaler needs to find
        its scale."""
        steps = self.since - self.start
        if self.total <= FEW_STEPS + steps // GROWTH_INTERVAL:
            return None
        return (
            f"fp16: {self.total:,} of {steps:,} steps were skipped, since a gradient was infinite; "
            "amp=bf16 does not need that"
        )
