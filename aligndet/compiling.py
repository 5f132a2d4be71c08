"""`compile: model`: torch.compile of the layers of a task, each part one graph.

What is compiled are calls that hold layers and nothing else: `predictions` of a detector (backbone,
neck, head or RPN) and of each branch of the box domain, and the backbone where it is called by
itself. Assignment, losses and the RoIs of Faster and Mask R-CNN depend on how many boxes there are
and stay as they are. Parameters keep their names and places, so checkpoints, the EMA and DDP notice
nothing.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from aligndet.adapters import Adapter
from models.backbone_base import StagedBackbone
from models.detector import DETECTORS

COMPILE = ("none", "model")
CPP_COMPILERS = ("g++", "clang++", "c++")  # of a CPU's graphs, unless CXX names another
C_COMPILERS = ("gcc", "clang", "cc")  # of what starts a GPU's kernels, unless CC names another


def check_compiler(setting: str, device: torch.device) -> None:
    """Find out before the run whether its graphs can be built.

    Args:
        setting: one of `COMPILE`.
        device: of this process.

    Raises:
        ValueError: a compiler is missing.
    """
    if setting == "none":
        return
    on_gpu = device.type == "cuda"
    variable, names = ("CC", C_COMPILERS) if on_gpu else ("CXX", CPP_COMPILERS)
    chosen = os.environ.get(variable)
    if not any(shutil.which(name) for name in ([chosen] if chosen else names)):
        language = "C" if on_gpu else "C++"
        missing = f"{variable} names {chosen}" if chosen else f"there is no {', '.join(names)}"
        raise ValueError(
            f"compile is {setting}, which needs a {language} compiler, but {missing}; install one, "
            "or set compile=none"
        )
    if on_gpu and importlib.util.find_spec("triton") is None:
        raise ValueError(
            f"compile is {setting}, which needs the package triton on a GPU, but it is not "
            "installed; install it, or set compile=none"
        )


def compile_layers(
    module: nn.Module, setting: str, backend: str | Callable[..., Any] = "inductor"
) -> None:
    """Compile the parts of a task, or of a detector by itself, in place.

    Graphs are built at the first calls, one for training and one for evaluation, and hold for
    images of most sizes and numbers; the exceptions, such as a single image or images with equal
    sides, have graphs of their own (docs/speed.md).

    Args:
        module: a task of `train.fit`, or a detector.
        setting: one of `COMPILE`; "none" does nothing.
        backend: of torch.compile.
    """
    if setting == "none":
        return
    options = {"dynamic": True, "backend": backend}
    kinds = tuple(detector for detector, _ in DETECTORS.values())
    detectors = [part for part in module.modules() if isinstance(part, kinds) and part.backbone]
    adapters = [part for part in module.modules() if isinstance(part, Adapter)]
    for part in detectors + adapters:
        part.predictions = torch.compile(part.predictions, **options)
    if not detectors:  # in which it is a part of the predictions
        for part in module.modules():
            if isinstance(part, StagedBackbone):
                part.compile(**options)
