"""Fill a backbone with weights of classification or self-supervised training, from any source."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn

from models.backbone import BACKBONES, random_backbone
from models.backbone_base import StagedBackbone
from models.backbone_branches import Branch, find_backbone, state_dicts
from models.backbone_fit import first_bad_value, first_problem, fitting_part, layer_weight
from models.backbone_import import BackboneImport
from models.backbone_layouts import OTHERS, OURS, PROJECTS
from models.weight_sources import local_file
from models.weights_file import read_weights_file


def load_backbone_weights(
    backbone: StagedBackbone, source: str | PathLike[str], partial: bool = False
) -> BackboneImport:
    """Copy weights into `backbone`; where they are in the file, and which project wrote it, is
    found by the names of its tensors.

    Args:
        backbone: filled in place; its `origin` is set to the result.
        source: a file, a folder with one, or what `local_file` downloads.
        partial: load what fits, and leave the rest random.

    Raises:
        ValueError: naming the file, if it cannot be had or read, or if the backbone in it is
            smaller, larger or otherwise different, or has values that are not finite; with
            `partial`, if nothing fits.
    """
    file = local_file(source, backbone.name)
    content = read_weights_file(file)
    ours = backbone.state_dict()
    try:
        branch = find_backbone(content, ours)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    fitting = fitting_part(branch.given, ours) if branch else {}
    if branch is None or not fitting or (not partial and first_problem(branch.given, ours)):
        raise ValueError(f"{file}: {refusal(backbone, content, branch)}")
    if bad := first_bad_value(fitting):
        raise ValueError(
            f"{file}: {bad}, as after training that diverged; give an earlier file of that run, or "
            "another one"
        )
    # A plain dict has no version, so BatchNorm accepts old files without its step counter.
    backbone.load_state_dict(fitting, strict=False)
    given, missing = branch.given, [n for n in ours if layer_weight(n) not in fitting]
    backbone.origin = BackboneImport(
        file=str(file) if str(file) == str(source) else f"{source} ({file})",
        entry=branch.entry,
        backbone=backbone.name,
        layout=branch.layout,
        loaded=tuple(fitting),
        missing=tuple(missing),
        mismatched=tuple(
            (name, tuple(given[name].shape), tuple(ours[name].shape))
            for name in missing
            if name in given and given[name].shape != ours[name].shape
        ),
        unused=tuple(key for key in branch.weights if branch.names.get(key) not in fitting),
    )
    return backbone.origin


def refusal(backbone: StagedBackbone, content: Any, branch: Branch | None) -> str:
    """Say why a file is refused and what to do; the text follows the file's name.

    Args:
        backbone: the one to fill.
        content: of the file.
        branch: the part of it that resembles the backbone most, if any does.
    """
    tensors = max((weights for _, weights in state_dicts(content)), key=len, default={})
    if not tensors:
        held = f" (but {three_of(content)})" if isinstance(content, Mapping) and content else ""
        return f"holds no state_dict{held}; give a file that torch.save wrote from a state_dict"
    other = whole_backbone(content)
    start = f"not the weights of {backbone.name}"
    if other is None and branch is None:
        names = [project.name for project in PROJECTS] + [naming.name for naming in (OURS, *OTHERS)]
        return (
            f"{start}: its tensors are {three_of(tensors)}, which are not known names "
            f"({'; '.join(dict.fromkeys(names))}), with or without a prefix; give another file"
        )
    ours = backbone.state_dict()
    given = branch.given if branch else {}
    fitting = fitting_part(given, ours)
    remedy = "give another file"
    if other:
        branch, remedy = other[1], f"set model.backbone={other[0]}, or {remedy}"
    elif fitting:
        remedy += ", or load what fits with model.backbone_partial=true"
    return (
        f"{start}: {first_problem(given, ours)}; its tensors are {three_of(tensors)} "
        f"({branch.layout.split(' (')[0]} recognised, {len(fitting)} of {len(ours)} tensors fit); "
        f"{remedy}"
    )


def three_of(names: Mapping[Any, Any]) -> str:
    """The first three names, and how many there are."""
    first = ", ".join(str(name) for name in list(names)[:3])
    return f"{first}, ... ({len(names)} in all)" if len(names) > 3 else first


def whole_backbone(content: Any) -> tuple[str, Branch] | None:
    """The backbone that a file holds completely, if any, and where."""
    for name in BACKBONES:
        with torch.device("meta"):
            ours: Mapping[str, Tensor] = random_backbone(name, nn.BatchNorm2d).state_dict()
        try:
            branch = find_backbone(content, ours)
        except ValueError:  # two of them
            continue
        if branch and not first_problem(branch.given, ours):
            return name, branch
    return None
