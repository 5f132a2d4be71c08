"""Fill a backbone with weights of classification or self-supervised training, from any source."""

from __future__ import annotations

import argparse
import pickle
from collections.abc import Mapping
from os import PathLike

import torch
from torch import Tensor, nn

from models.backbone import BACKBONES
from models.backbone_base import StagedBackbone
from models.backbone_import import BackboneImport
from models.backbone_layouts import LAYOUTS, Layout, recognise

# Where files keep the weights. Averages over the training (torchvision's and timm's scripts, and
# DINO's teacher) come before the trained weights themselves.
CONTAINERS = ("model_ema", "state_dict_ema", "model", "state_dict", "teacher", "student")
STEP_COUNTER = "num_batches_tracked"  # of BatchNorm; old files lack it


def load_backbone_weights(
    backbone: StagedBackbone, file: str | PathLike[str], partial: bool = False
) -> BackboneImport:
    """Copy weights into `backbone`; the tensor names reveal the source project, see `LAYOUTS`.

    Args:
        backbone: filled in place; its `origin` is set to the result.
        file: holds a state_dict, or one under a key of `CONTAINERS`.
        partial: load what fits, and leave the rest random.

    Raises:
        ValueError: naming the file, if it cannot be read, or if the backbone in it is smaller,
            larger or otherwise different; with `partial`, if nothing fits.
    """
    entry, weights = read_state_dict(file)
    ours = backbone.state_dict()
    layout, names = recognise(weights, ours) or (None, {})
    given = {name: weights[key] for key, name in names.items()}
    fitting = fitting_part(given, ours)
    if not fitting or (not partial and first_problem(given, ours)):
        raise ValueError(f"{file} {refusal(backbone, weights, layout, given)}")
    # A plain dict has no version, so BatchNorm accepts old files without its step counter.
    backbone.load_state_dict(fitting, strict=False)
    missing = [n for n in ours if n not in fitting and layer_weight(n) not in fitting]
    backbone.origin = BackboneImport(
        file=str(file),
        entry=entry,
        backbone=backbone.name,
        layout=f"{layout.name} ({layout.prefix or 'no prefix'})",
        loaded=tuple(fitting),
        missing=tuple(missing),
        mismatched=tuple(
            (name, tuple(given[name].shape), tuple(ours[name].shape))
            for name in missing
            if name in given and given[name].shape != ours[name].shape
        ),
        unused=tuple(key for key in weights if names.get(key) not in fitting),
    )
    return backbone.origin


def layer_weight(name: str) -> str:
    """The weight beside a step counter, which means nothing alone; other names are unchanged."""
    stem = name.removesuffix(STEP_COUNTER)
    return f"{stem}weight" if stem != name else name


def fitting_part(given: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors that fit by name and shape, in our order; a step counter only with its weight."""
    same = {n for n in ours if n in given and given[n].shape == ours[n].shape}
    return {n: given[n] for n in ours if n in same and layer_weight(n) in same}


def refusal(
    backbone: StagedBackbone,
    weights: Mapping[str, Tensor],
    layout: Layout | None,
    given: Mapping[str, Tensor],
) -> str:
    """Say why a file is refused and what to do; the text follows the file's name.

    Args:
        backbone: the one to fill.
        weights: the file's.
        layout: the one recognised, if any.
        given: the weights under our names.
    """
    other = whole_backbone(weights)
    if other is None and layout is None:
        known = "; ".join(dict.fromkeys(layout.name for layout in LAYOUTS))
        return f"holds no weights of {backbone.name} under known names ({known}); give another file"
    ours = backbone.state_dict()
    fitting = fitting_part(given, ours)
    remedy = "give another file"
    if other:
        layout, remedy = other[1], f"set model.backbone={other[0]}, or {remedy}"
    elif fitting:
        remedy += ", or load what fits with model.backbone_partial=true"
    return (
        f"are not weights of {backbone.name}: {first_problem(given, ours)} "
        f"({layout.name} recognised, {len(fitting)} of {len(ours)} tensors fit); {remedy}"
    )


def required(ours: Mapping[str, Tensor]) -> list[str]:
    """Names that a file must have: all but step counters."""
    return [name for name in ours if not name.endswith(STEP_COUNTER)]


def first_problem(given: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> str | None:
    """In a few words, why the weights are not exactly those of a backbone; None if they are."""
    for name in required(ours):
        if name not in given:
            return f"{name} is missing"
        if given[name].shape != ours[name].shape:
            return f"{name} is {tuple(given[name].shape)} instead of {tuple(ours[name].shape)}"
    # A deeper network of the same kind has everything that a shallower one needs, and more.
    modules = {name.split(".")[0] for name in ours}
    more = [name for name in given if name not in ours and name.split(".")[0] in modules]
    return f"{more[0]} is unexpected" if more else None


def whole_backbone(weights: Mapping[str, Tensor]) -> tuple[str, Layout] | None:
    """The backbone that a file holds completely, if any, and the layout of its names."""
    for name, build in BACKBONES.items():
        with torch.device("meta"):
            ours = build(norm=nn.BatchNorm2d).state_dict()
        found = recognise(weights, ours)
        if found and not first_problem({n: weights[key] for key, n in found[1].items()}, ours):
            return name, found[0]
    return None


def read_state_dict(file: str | PathLike[str]) -> tuple[str | None, Mapping[str, Tensor]]:
    """The state_dict in `file`, on the CPU, and the key of `CONTAINERS` it was under, if any.

    Raises:
        ValueError: naming the file, if it cannot be read or holds no state_dict.
    """
    if str(file).endswith(".safetensors"):
        raise ValueError(
            f"{file} is a safetensors file, which is not supported; convert it with "
            "torch.save(safetensors.torch.load_file(FILE), 'weights.pth')"
        )
    try:
        # Files of DINO and PixPro hold command-line options beside the weights.
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{file} cannot be read as PyTorch weights ({type(error).__name__}); it is damaged or "
            "holds more than tensors: if you trust it, load it with weights_only=False and save "
            "its state_dict alone"
        ) from error
    except Exception as error:  # a damaged file fails in ways torch.load does not document
        raise ValueError(
            f"{file} cannot be read as PyTorch weights ({type(error).__name__}); "
            "give a file that torch.save wrote from a state_dict"
        ) from error
    if isinstance(content, Mapping):
        for entry, inner in [*((key, content.get(key)) for key in CONTAINERS), (None, content)]:
            if is_state_dict(inner):
                return entry, inner
    raise ValueError(
        f"{file} holds no state_dict; give a file that torch.save wrote from a state_dict"
    )


def is_state_dict(content: object) -> bool:
    """Whether `content` is a non-empty mapping of tensors."""
    if not isinstance(content, Mapping) or not content:
        return False
    return all(isinstance(value, Tensor) for value in content.values())
