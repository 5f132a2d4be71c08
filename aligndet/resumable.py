"""Does the state in a checkpoint fit the run that resumes from it?

`RunDirectory.find` compares settings and inputs; here the numbers are compared with what they will
replace, before anything in the run directory changes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from aligndet.config import Config
from aligndet.optim import OptimConfig, build_optimizer
from aligndet.saved_content import words
from aligndet.transfer import first_misfit

# Of each optimiser, the numbers that it keeps for a parameter.
KEPT = {"sgd": {"momentum_buffer"}, "adamw": {"step", "exp_avg", "exp_avg_sq"}}
# Of the loss scaler, with the least value of each.
SCALER = {"scale": 0, "growth_factor": 1, "backoff_factor": 0, "growth_interval": 1}


def check_resumable(
    path: Path, state: Mapping[str, Any] | None, task: nn.Module, config: Config, total_steps: int
) -> None:
    """Check that `train.State.restore` can load a state, and that all of it makes sense.

    Args:
        path: the file it is from, for the message.
        state: what `RunDirectory.find` returned; None, a run that starts anew, passes.
        task: what is trained, as built for this run.
        config: of the run.
        total_steps: of its schedule.

    Raises:
        ValueError: one sentence that names the file and what does not fit.
    """
    if state is None:
        return
    problem = (
        step_problem(state["step"], total_steps)
        or model_problem(state["model"], task.state_dict())
        or optimizer_problem(state, task, config)
        or scaler_problem(state.get("scaler"), enabled=config.amp == "fp16")
    )
    if problem:
        raise ValueError(
            f"{path}: does not fit this run ({problem}): it is damaged, or was written by another "
            "version of this project; resume with that one, choose another output_dir, or start "
            "over with --resume none"
        )


def step_problem(step: int, total_steps: int) -> str | None:
    """Whether a run of that length can be after `step` steps."""
    return None if step <= total_steps else f"it is of step {step:,} of {total_steps:,}"


def model_problem(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str | None:
    """The first weight that is not exactly of the kind that the task has."""
    if misfit := first_misfit(weights, expected):
        return misfit
    for name, tensor in weights.items():
        if tensor.dtype != expected[name].dtype:
            return f"{name} has numbers of {words(tensor.dtype)}, not {words(expected[name].dtype)}"
    return None


def optimizer_problem(state: Mapping[str, Any], task: nn.Module, config: Config) -> str | None:
    """The first thing in the optimiser's state that is not as this run's optimiser keeps it."""
    saved, optimizer = state["optimizer"], build_optimizer(task, config.optim)
    ours = optimizer.state_dict()["param_groups"]
    groups, kept = saved.get("param_groups"), saved.get("state")
    if not isinstance(groups, list) or len(groups) != len(ours) or not isinstance(kept, Mapping):
        return "its optimiser has other groups of parameters"
    for group, mine in zip(groups, ours, strict=True):
        if problem := group_problem(group, mine):
            return problem
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    if not set(kept) <= set(range(len(parameters))):
        return "its optimiser has other parameters"
    for number, values in kept.items():
        if problem := kept_problem(values, parameters[number], config.optim, state["step"]):
            return f"its optimiser's parameter {number} {problem}"
    # With fp16, the first steps may all be skipped.
    remembers = config.optim.name == "adamw" or config.optim.momentum > 0
    if not kept and parameters and state["step"] and remembers and config.amp != "fp16":
        return f"its optimiser is empty after {state['step']:,} steps"
    return None


def group_problem(saved: Any, ours: Mapping[str, Any]) -> str | None:
    """A setting in which two groups of parameters differ; the learning rate is set at each step,
    and a fused optimiser does what another does.

    Another version of torch may have fewer or more settings.
    """
    if not isinstance(saved, Mapping) or saved.get("params") != ours["params"]:
        return "its optimiser has other groups of parameters"
    lr = saved.get("lr")
    if type(lr) not in (int, float) or not math.isfinite(lr):
        return f"its optimiser has lr={lr!r:.30}"
    for key in (ours.keys() & saved.keys()) - {"lr", "params", "fused"}:
        same = type(saved[key]) is type(ours[key]) and saved[key] == ours[key]
        if not same:
            return f"its optimiser has {key}={saved[key]!r:.30}, not {ours[key]!r:.30}"
    return None


def kept_problem(values: Any, parameter: Tensor, config: OptimConfig, step: int) -> str | None:
    """What is wrong with the numbers that the optimiser keeps for a parameter."""
    if not isinstance(values, Mapping) or not set(values) <= KEPT[config.name]:
        return f"is not that of {config.name}"
    if config.name == "adamw" and set(values) != KEPT["adamw"]:
        return "lacks numbers"
    for name, value in values.items():
        if value is None and name == "momentum_buffer":
            continue  # there is no momentum
        shape = torch.Size() if name == "step" else parameter.shape
        if not isinstance(value, Tensor) or value.shape != shape or value.dtype != parameter.dtype:
            return f"has {name} of another shape or kind"
        if not value.isfinite().all():
            return f"has {name} with NaN or infinite values"
        if name == "exp_avg_sq" and (value < 0).any() or name == "step" and not 0 <= value <= step:
            return f"has an impossible {name}"
    return None


def scaler_problem(saved: Any, enabled: bool) -> str | None:
    """What is wrong with the state of the loss scaler, which does nothing unless `enabled`."""
    if not isinstance(saved, Mapping):
        return "the state of its loss scaler is missing"
    if not enabled:
        return None
    for key, least in SCALER.items():
        value = saved.get(key)
        if type(value) not in (int, float) or not math.isfinite(value) or value < least:
            return f"its loss scaler has {key}={value!r:.30}"
    tracker = saved.get("_growth_tracker")
    return None if type(tracker) is int and tracker >= 0 else "its loss scaler counts wrongly"
