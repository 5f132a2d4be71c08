"""Steps that fp16's loss scaler leaves out are counted."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from aligndet.amp import FEW_STEPS, SkippedSteps, autocast, grad_scaler
from tests.test_train import Line, line_config, lines, run_line

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("amp", "dtype"), [("none", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_autocast_by_name(amp, dtype):
    with autocast(CPU, amp):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype
    assert grad_scaler(CPU, amp).is_enabled() == (amp == "fp16")


def take(parameter, optimizer, scaler, gradient):
    """One step of the loop with this gradient."""
    parameter.grad = torch.tensor([gradient]) * scaler.get_scale()
    scaler.step(optimizer)
    scaler.update()


def counted(amp, gradients, start=0):
    """The counter after a step of each gradient, and the weight, which moves by 1 per step."""
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    scaler = grad_scaler(CPU, amp)
    scaler.scale(torch.zeros(1))  # as the loss is, which sets it up
    skipped = SkippedSteps(optimizer, scaler, start)
    for gradient in gradients:
        take(parameter, optimizer, scaler, gradient)
    return skipped, parameter.item()


def test_steps_since_the_last_line_and_the_scale():
    inf = float("inf")
    skipped, weight = counted("fp16", [-1.0, inf, -1.0, inf, inf], start=100)
    assert weight == 2
    assert skipped.log(105) == {"skipped_steps": 3, "loss_scale": 65536 / 8}
    assert skipped.log(105) == {"skipped_steps": 0, "loss_scale": 65536 / 8}
    assert skipped.total == 3


def test_without_a_scaler_there_is_nothing_to_log():
    skipped, weight = counted("none", [-1.0, -1.0])
    assert weight == 2
    assert skipped.log(2) == {}
    assert skipped.summary() is None


def test_only_many_skipped_steps_are_worth_a_sentence():
    skipped, _ = counted("fp16", [float("inf")] * FEW_STEPS)
    skipped.log(FEW_STEPS)
    assert skipped.summary() is None
    skipped, _ = counted("fp16", [-1.0] * 3 + [float("inf")] * (FEW_STEPS + 1))
    skipped.log(FEW_STEPS + 4)
    assert skipped.summary().startswith("fp16: 21 of 24 steps were skipped")


class Overflowing(Line):
    """Its second and third step have an infinite gradient."""

    def forward(self, batch, with_statistics):
        losses, statistics = super().forward(batch, with_statistics)
        if len(self.updates) in (1, 2):
            losses["loss_zero"] = (0.0 * self.slope).sqrt()  # 0, with the gradient 0 / 0
        return losses, statistics


@pytest.mark.parametrize("clip_norm", [None, 10.0])
def test_a_run_logs_them(tmp_path, clip_norm):
    config = line_config(tmp_path, optim={"clip_norm": clip_norm}, schedule={"iterations": 4})
    task, run = run_line(dataclasses.replace(config, amp="fp16"), Overflowing())
    written = lines(run)
    assert [line["skipped_steps"] for line in written] == [0, 1, 1, 0]
    assert [line["loss_scale"] for line in written] == [65536.0, 32768.0, 16384.0, 16384.0]
    assert written[1]["slope"] == written[2]["slope"] == written[3]["slope"]
    assert torch.isfinite(task.slope)
