"""Weights of classification or self-supervised training, whoever made them, into a backbone."""

from __future__ import annotations

import argparse
import pickle
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from os import PathLike

import torch
from torch import Tensor, nn

from models.backbone import BACKBONES
from models.backbone_layouts import LAYOUTS, recognise
from models.staged import StagedBackbone

# Where files keep the weights; DINO's have two, of which the teacher is the better one.
CONTAINERS = ("model", "state_dict", "teacher", "student")


@dataclass(frozen=True)
class BackboneImport:
    """What became of a file's weights."""

    file: str
    backbone: str  # name of the architecture
    layout: str  # who names weights so
    loaded: tuple[str, ...]  # our names
    missing: tuple[str, ...]  # our names that the file did not give; still random
    unused: tuple[str, ...]  # their names

    def summary(self) -> str:
        """A few lines for the terminal."""
        total = len(self.loaded) + len(self.missing)
        lines = [
            f"backbone weights from {self.file}",
            f"  recognised  {self.layout}",
            f"  loaded      {len(self.loaded)} of {total} tensors of {self.backbone}",
        ]
        if self.missing:
            lines.append(f"  left random {count_modules(self.missing)}")
        if self.unused:
            lines.append(f"  not used    {count_modules(self.unused)}")
        return "\n".join(lines)


def count_modules(names: Iterable[str]) -> str:
    """`layer1 (3), fc (2)`: how many tensors each module has, in the order they come in."""
    counts: dict[str, int] = {}
    for name in names:
        wrapped = name.startswith(("module.", "backbone."))
        module = ".".join(name.split(".")[: 2 if wrapped else 1])
        counts[module] = counts.get(module, 0) + 1
    return ", ".join(f"{module} ({count})" for module, count in counts.items())


def load_backbone_weights(
    backbone: StagedBackbone, file: str | PathLike[str], partial: bool = False
) -> BackboneImport:
    """Copy weights into `backbone`; whose they are is told from their names, see `LAYOUTS`.

    Args:
        backbone: filled in place; its `origin` is set to the result.
        file: holds a state_dict, or one under a key of `CONTAINERS`.
        partial: load what fits, and leave the rest at random.

    Raises:
        ValueError: naming the file, if it cannot be read, or does not hold all of the backbone and
            nothing more of it; with `partial`, if nothing fits.
    """
    weights, ours = read_state_dict(file), backbone.state_dict()
    found = recognise(weights, ours)
    if found is None:
        known = "; ".join(dict.fromkeys(layout.name for layout in LAYOUTS))
        raise ValueError(
            f"{file} holds no weights of {backbone.name} under names that are known ({known}); "
            f"{remedy(weights)}"
        )
    layout, names = found
    given = {name: weights[key] for key, name in names.items()}
    fitting = {
        name: value
        for name, value in given.items()
        if name in ours and value.shape == ours[name].shape
    }
    problem = first_problem(given, ours)
    if not fitting or (problem and not partial):
        raise ValueError(
            f"{file} are not weights of {backbone.name}: {problem} ({layout.name} recognised, "
            f"{len(fitting)} of {len(ours)} tensors fit); {remedy(weights)}"
        )
    # A plain dict has no version, so BatchNorm accepts old files without its step counter.
    backbone.load_state_dict(fitting, strict=False)
    backbone.origin = BackboneImport(
        file=str(file),
        backbone=backbone.name,
        layout=f"{layout.name} ({layout.prefix or 'no prefix'})",
        loaded=tuple(name for name in ours if name in fitting),
        missing=tuple(name for name in required(ours) if name not in fitting),
        unused=tuple(key for key in weights if names.get(key) not in fitting),
    )
    return backbone.origin


def required(ours: Mapping[str, Tensor]) -> list[str]:
    """Names that a file must have: all but BatchNorm's step counters, which old files lack."""
    return [name for name in ours if not name.endswith("num_batches_tracked")]


def first_problem(given: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> str | None:
    """What keeps the weights from being exactly those of a backbone, in a few words."""
    for name in required(ours):
        if name not in given:
            return f"{name} is missing"
        if given[name].shape != ours[name].shape:
            return f"{name} is {tuple(given[name].shape)} instead of {tuple(ours[name].shape)}"
    # A deeper network of the same kind has all that a shallower one needs, and more.
    modules = {name.split(".")[0] for name in ours}
    more = [name for name in given if name not in ours and name.split(".")[0] in modules]
    return f"{more[0]} is unexpected" if more else None


def remedy(weights: Mapping[str, Tensor]) -> str:
    """What to do about a file that does not fit; names the backbone that it does fit."""
    for name, build in BACKBONES.items():
        with torch.device("meta"):
            other = build(norm=nn.BatchNorm2d).state_dict()
        found = recognise(weights, other)
        if found and not first_problem({n: weights[k] for k, n in found[1].items()}, other):
            return f"set model.backbone={name}, or give another file"
    return "give another file, or load what fits with model.backbone_partial=true"


def read_state_dict(file: str | PathLike[str]) -> Mapping[str, Tensor]:
    """The state_dict in `file`, on the CPU.

    Raises:
        ValueError: naming the file, if it cannot be read or holds no state_dict.
    """
    try:
        # Options of the command line lie beside the weights in files of DINO and PixPro.
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{file} cannot be read as PyTorch weights ({type(error).__name__}), it is damaged or "
            "holds more than tensors: if you trust it, load it with weights_only=False and save "
            "its state_dict alone"
        ) from error
    except Exception as error:  # a damaged file fails in ways torch.load does not list
        raise ValueError(
            f"{file} cannot be read as PyTorch weights ({type(error).__name__}); "
            "give a file that torch.save wrote from a state_dict"
        ) from error
    for key in CONTAINERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    tensors = isinstance(content, Mapping) and content
    if not tensors or not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(
            f"{file} holds no state_dict; give a file that torch.save wrote from a state_dict"
        )
    return content
