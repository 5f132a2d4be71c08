"""Mixed precision by name."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch

AMP_DTYPES = {"none": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device: torch.device, amp: str) -> AbstractContextManager[None]:
    """The autocast context of an `amp` setting; `none` gives one that does nothing."""
    dtype = AMP_DTYPES[amp]
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


def grad_scaler(device: torch.device, amp: str) -> torch.amp.GradScaler:
    """The loss scaler; it does nothing unless `amp` is fp16, whose gradients can underflow."""
    return torch.amp.GradScaler(device.type, enabled=amp == "fp16")
