"""The state of a run against what it will replace: every misfit is named before anything is."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from aligndet.config import Config
from aligndet.optim import OptimConfig, ScheduleConfig, build_optimizer
from aligndet.resumable import check_resumable
from aligndet.run_directory import RunDirectory
from train import State

PATH = Path("run/last.pt")
TOTAL = 10


def config(optimizer="sgd", amp="none", **optim):
    optim = OptimConfig(name=optimizer, lr=0.1, **optim)
    return Config(output_dir="run", optim=optim, schedule=ScheduleConfig(iterations=TOTAL), amp=amp)


def task():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))


def state(config, steps=2):
    """What `State.save` writes after some steps."""
    model = task()
    optimizer = build_optimizer(model, config.optim)
    for _ in range(steps):
        model(torch.randn(4, 3)).square().sum().backward()
        optimizer.step()
    content = {"step": steps, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
    scaler = {} if config.amp == "none" else SCALER
    return copy.deepcopy({**content, "scaler": scaler})


SCALER = {
    "scale": 65536.0,
    "growth_factor": 2.0,
    "backoff_factor": 0.5,
    "growth_interval": 2000,
    "_growth_tracker": 3,
}


@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize(
    "settings",
    [
        config(),
        config(momentum=0.0),
        config(decay_norm_and_bias=False),
        config("adamw"),
        config("adamw", amp="fp16"),
    ],
)
def test_what_a_run_saves(settings, steps):
    check_resumable(PATH, state(settings, steps), task(), settings, TOTAL)


def test_a_new_run():
    check_resumable(PATH, None, task(), config(), TOTAL)


def test_what_passes_can_be_restored():
    """GradScaler's state is empty on a CPU unless it is enabled; its keys are those we check."""
    scaler = torch.amp.GradScaler("cpu", enabled=True)
    assert scaler.state_dict().keys() == SCALER.keys()
    settings, model = config(), task()
    content = state(settings)
    check_resumable(PATH, content, model, settings, TOTAL)
    optimizer = build_optimizer(model, settings.optim)
    off = torch.amp.GradScaler("cpu", enabled=False)
    run = RunDirectory("run")
    assert State(model, optimizer, off, run, settings).restore(content) == 2
    assert torch.equal(model[0].weight, content["model"]["0.weight"])


def test_older_checkpoints_lack_some_settings():
    content = state(config())
    for group in content["optimizer"]["param_groups"]:
        del group["lr_scale"], group["foreach"]
        group["of another version of torch"] = True
        group["lr"] = 0.5  # set at each step
    check_resumable(PATH, content, task(), config(), TOTAL)


@pytest.mark.parametrize("fused", [None, False, True])  # None before there was such a choice
def test_a_fused_optimizer_and_another_resume_each_other(fused):
    content = state(config())
    for group in content["optimizer"]["param_groups"]:
        group["fused"] = fused
    check_resumable(PATH, content, task(), config(), TOTAL)


def test_all_steps_with_fp16_may_be_skipped():
    content = state(config(amp="fp16"))
    content["optimizer"]["state"] = {}
    check_resumable(PATH, content, task(), config(amp="fp16"), TOTAL)


NAN = float("nan")


def change(content, kind):
    """Damage of a kind, in place."""
    model, optimizer = content["model"], content["optimizer"]
    group, kept = optimizer["param_groups"][0], optimizer["state"]
    momentum = kept[0].get("momentum_buffer")
    change = {
        "step": lambda: content.update(step=11),
        "missing": lambda: model.pop("0.bias"),
        "more": lambda: model.update({"2.bias": torch.ones(1)}),
        "shape": lambda: model.update({"0.bias": torch.ones(1, 2)}),
        "half": lambda: model.update({"0.bias": torch.ones(2).half()}),
        "counter": lambda: model.update({"1.num_batches_tracked": torch.tensor(3.0)}),
        "no groups": lambda: optimizer.update(param_groups=[]),
        "no state": lambda: optimizer.pop("state"),
        "other parameters": lambda: group.update(params=[0, 1]),
        "weight decay": lambda: group.update(weight_decay=0.5),
        "rate": lambda: group.update(lr="x"),
        "a tensor": lambda: group.update(weight_decay=torch.ones(2)),
        "another kind": lambda: group.update(nesterov=0),
        "empty": lambda: optimizer.update(state={}),
        "names": lambda: optimizer.update(state={"0": kept[0]}),
        "one more": lambda: kept.update({4: kept[0]}),
        "of adamw": lambda: kept.update({0: {"exp_avg": momentum}}),
        "not kept": lambda: kept.update({0: 3}),
        "other shape": lambda: kept[0].update(momentum_buffer=torch.ones(3)),
        "transposed": lambda: kept[0].update(momentum_buffer=momentum.T),
        "other numbers": lambda: kept[0].update(momentum_buffer=momentum.double()),
        "a number": lambda: kept[0].update(momentum_buffer=1.0),
        "nan": lambda: momentum.fill_(NAN),
        "no scaler": lambda: content.pop("scaler"),
        "scale": lambda: content["scaler"].update(scale=NAN),
        "tracker": lambda: content["scaler"].update(_growth_tracker=1.5),
        "lacks": lambda: kept[0].pop("exp_avg"),
        "squares": lambda: kept[0]["exp_avg_sq"].fill_(-1.0),
        "count": lambda: kept[0]["step"].fill_(3.0),
    }[kind]
    change()
    return content


SGD = {
    "step": "it is of step 11 of 10",
    "missing": "0.bias is missing from the file",
    "more": "2.bias is not part of it",
    "shape": r"0.bias has shape \(1, 2\), not \(2,\)",
    "half": "0.bias has numbers of float16, not float32",
    "counter": "1.num_batches_tracked has numbers of float32, not int64",
    "no groups": "its optimiser has other groups",
    "no state": "its optimiser has other groups",
    "other parameters": "its optimiser has other groups",
    "weight decay": "its optimiser has weight_decay=0.5, not 0.0001",
    "rate": "its optimiser has lr='x'",
    "a tensor": r"its optimiser has weight_decay=tensor",
    "another kind": "its optimiser has nesterov=0, not False",
    "empty": "its optimiser is empty after 2 steps",
    "names": "its optimiser has other parameters",
    "one more": "its optimiser has other parameters",
    "of adamw": "its optimiser's parameter 0 is not that of sgd",
    "not kept": "its optimiser's parameter 0 is not that of sgd",
    "other shape": "parameter 0 has momentum_buffer of another shape or kind",
    "transposed": "parameter 0 has momentum_buffer of another shape or kind",
    "other numbers": "parameter 0 has momentum_buffer of another shape or kind",
    "a number": "parameter 0 has momentum_buffer of another shape or kind",
    "nan": "parameter 0 has momentum_buffer with NaN or infinite values",
    "no scaler": "the state of its loss scaler is missing",
}
ADAMW = {
    "lacks": "parameter 0 lacks numbers",
    "squares": "parameter 0 has an impossible exp_avg_sq",
    "count": "parameter 0 has an impossible step",
    "scale": "its loss scaler has scale=nan",
    "tracker": "its loss scaler counts wrongly",
}


@pytest.mark.parametrize(
    ("settings", "kind", "words"),
    [
        *((config(), kind, words) for kind, words in SGD.items()),
        *((config("adamw", "fp16"), kind, words) for kind, words in ADAMW.items()),
    ],
)
def test_what_does_not_fit_is_one_sentence_that_names_it(settings, kind, words):
    content = change(state(settings), kind)
    with pytest.raises(
        ValueError, match=rf"^run/last\.pt: does not fit this run \(.*{words}"
    ) as error:
        check_resumable(PATH, content, task(), settings, TOTAL)
    assert "--resume none" in str(error.value)
    assert "\n" not in str(error.value)
