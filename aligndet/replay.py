"""Compute the step again at which a run stopped because its numbers were not finite.

    python -m aligndet.replay RUN/nonfinite.pt [--device cpu]

Prints the terms of the loss, as in the run and now; where the first value that is not finite comes
from; and the norms of the gradient that each term sends into each part of the model.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from aligndet import checkpoint, cli, dist
from aligndet.amp import autocast
from aligndet.box_domain import BoxDomain
from aligndet.config import Config, build_config
from aligndet.determinism import deterministic
from aligndet.fine_tuning import FineTuning
from aligndet.first_nonfinite import FirstNonFinite
from aligndet.image_domain import build_image_domain
from aligndet.nonfinite import MOST_NAMES, image_names, not_finite, weights_not_finite
from data.counting import names
from data.image_folder import ImageFiles
from data.loaders import to_device
from data.normalise import normalise_batch
from models import build_detector
from models.weights_file import read_weights_file

DEPTH = 3  # of the names in the table of gradients
ENTRIES = {  # of a file, and their types
    **dict.fromkeys(("step", "rank", "processes", "threads"), int),
    **dict.fromkeys(("config", "model", "losses"), dict),
    **{"stage": str, "num_classes": (int, type(None)), "loss_scale": float, "parts": list},
}


def main() -> None:
    """Parse the command line and print the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", metavar="FILE", help="nonfinite.pt, or the run directory")
    parser.add_argument("--device", default="auto", metavar="auto|cpu|cuda")
    args = parser.parse_args()
    with cli.one_line_errors(ValueError):
        step = ReplayedStep(read(args.file), dist.choose_device(args.device))
        with deterministic(step.config.deterministic):
            for line in step.report():
                print(line, flush=True)


def read(path: str | Path) -> dict[str, Any]:
    """The content of a file that `aligndet.nonfinite` wrote.

    Raises:
        ValueError: it is missing, damaged or another file.
    """
    path = checkpoint.file_of(path, "nonfinite.pt", "FILE")
    remedy = "give the nonfinite.pt of a run directory"
    content = read_weights_file(path, remedy)
    if not isinstance(content, dict) or not {"parts", "model", "losses"} <= content.keys():
        raise ValueError(f"{path}: not a step of a run; {remedy}")
    wrong = [key for key, kind in ENTRIES.items() if not isinstance(content.get(key), kind)]
    if wrong or not content["parts"] or min(content["processes"], content["threads"]) < 1:
        raise ValueError(f"{path}: damaged ({names(wrong) or 'empty entries'}); {remedy}")
    return content


class ReplayedStep:
    """The step of a file.

    Args:
        content: see `read`.
        device: to compute on; only the device of the run gives the same bits.

    Raises:
        ValueError: the file is of another version of this project.
    """

    def __init__(self, content: Mapping[str, Any], device: torch.device) -> None:
        self.content, self.device = content, device
        if device.type == "cpu":
            torch.set_num_threads(content["threads"])  # sums are split among them
        self.config = build_config(content["config"])
        self.task = build_task(self.config, content).train()
        self.task.to(device, memory_format=torch.channels_last)
        self.parts = to_device(content["parts"], device)

    def reset(self) -> None:
        """Make the weights what they were before the step.

        Raises:
            ValueError: they do not fit.
        """
        try:
            self.task.load_state_dict(self.content["model"])
        except RuntimeError:
            raise ValueError(
                "the file was written by another version of this project; replay it with that one"
            ) from None

    def forward(self) -> Iterator[dict[str, Tensor]]:
        """The losses of each part of the step, one after the other."""
        self.reset()
        for part in self.parts:
            torch.manual_seed(part["seed"])
            with autocast(self.device, self.config.amp):
                losses, _ = self.task(normalise_batch(part["batch"]), with_statistics=False)
            yield losses

    def gradient(self, term: str | None = None) -> dict[str, Tensor]:
        """The gradient of the whole step, by parameter.

        Args:
            term: of one term of the loss alone; None: of their sum.
        """
        self.task.zero_grad(set_to_none=True)
        scale = self.content["loss_scale"]
        for losses in self.forward():
            loss = torch.stack(list(losses.values())).sum() if term is None else losses[term]
            if loss.requires_grad:
                (scale * loss / self.config.optim.accumulate).backward()
        gradients = ((n, p.grad) for n, p in self.task.named_parameters() if p.grad is not None)
        return {name: gradient / scale for name, gradient in gradients}

    def report(self) -> Iterator[str]:
        """Lines to print."""
        content = self.content
        yield (
            f"step {content['step']} of {self.config.output_dir}, rank {content['rank']} of "
            f"{content['processes']}; {self.device}, amp {self.config.amp}"
        )
        for number, part in enumerate(content["parts"]):
            label = f"images of part {number}" if len(content["parts"]) > 1 else "images"
            yield f"{label}: {names(image_names(part['batch']), MOST_NAMES) or 'not known'}"
        losses = list(self.forward())
        yield ""
        yield from loss_table(content["losses"], losses[-1])
        if content["processes"] > 1:
            yield "(replayed alone: values shared with other ranks, such as counts, are missing)"
        yield ""
        self.reset()
        yield self.cause()
        yield ""
        yield from gradient_table({name: self.gradient(name) for name in losses[-1]})

    def cause(self) -> str:
        """Where the first value that is not finite comes from, in a line."""
        bad = weights_not_finite(self.task)
        if bad:
            return f"the weights are not finite before the step: {names(bad)}"
        bad = not_finite(_tensors(self.content["parts"], ""))
        if bad:
            return f"the batch is not finite: {names(bad)}"
        with FirstNonFinite(self.task) as search:
            self.gradient()
        if search.value:
            return f"first value that is not finite: {search.value}"
        if search.gradient:
            return f"first gradient that is not finite: of {search.gradient}"
        return "all values and gradients are finite"


def build_task(config: Config, content: Mapping[str, Any]) -> nn.Module:
    """The task of the stage, with random weights."""
    model, classes = replace(config.model, backbone_weights=None), content["num_classes"]
    if content["stage"] == "box":
        detector = build_detector(model, classes or 1)  # older files do not have the number
        return BoxDomain(detector, model.detector, config.box_domain)
    if content["stage"] == "finetune":
        return FineTuning(build_detector(model, classes))
    if content["stage"] == "image":
        groups = config.image.norm_groups or config.image.spec.norm_groups
        of_rank = max(1, groups // content["processes"])
        image = replace(config.image, norm_groups=of_rank, probe_train=None, probe_val=None)
        files = ImageFiles(Path(), (), classes=tuple(map(str, range(classes or 0))))
        return build_image_domain(model, image, config.data.batch_size, files)
    raise ValueError(
        f"the file is of the unknown stage {content['stage']!r}; replay it with the version of "
        "this project that wrote it"
    )


def loss_table(before: Mapping[str, float], now: Mapping[str, Tensor]) -> Iterator[str]:
    """A line per term of the loss."""
    yield f"{'term':24}{'in the run':>14}{'replayed':>14}"
    for name, value in now.items():
        same = _same(before.get(name), value.item())
        mark = "" if same else "  differs"
        yield f"{name:24}{before.get(name, math.nan):14.7g}{value.item():14.7g}{mark}"


def gradient_table(gradients: Mapping[str, Mapping[str, Tensor]]) -> Iterator[str]:
    """A line per part of the model, a column per term of the loss."""
    modules = list(dict.fromkeys(module_of(n) for terms in gradients.values() for n in terms))
    width = 2 + max(map(len, modules), default=0)
    yield f"{'gradient norm of':{width}}" + "".join(f"{name:>21}" for name in gradients)
    for module in modules:
        yield f"{module:{width}}" + "".join(
            f"{_norm([g for n, g in terms.items() if module_of(n) == module]):21.5g}"
            for terms in gradients.values()
        )


def module_of(parameter: str) -> str:
    """The part of the model that a parameter belongs to."""
    return ".".join(parameter.split(".")[:-1][:DEPTH])


def _norm(gradients: Sequence[Tensor]) -> float:
    return math.sqrt(sum(gradient.double().square().sum().item() for gradient in gradients))


def _same(before: float | None, now: float) -> bool:
    return before == now or (before is not None and math.isnan(before) and math.isnan(now))


def _tensors(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    """All tensors in nested containers, with their places."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for key, entry in value.items():
            yield from _tensors(entry, f"{name}.{key}".lstrip("."))
    elif isinstance(value, (list, tuple)):
        for key, entry in enumerate(value):
            yield from _tensors(entry, f"{name}.{key}".lstrip("."))


if __name__ == "__main__":
    main()
