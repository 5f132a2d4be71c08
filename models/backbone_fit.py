"""Do given weights fit a backbone? All mappings are from our names to tensors."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from models.swin import relative_position_index

STEP_COUNTER = "num_batches_tracked"  # of BatchNorm; old files lack it
WINDOW_INDEX = "relative_position_index"  # of a Swin; a constant, which some files lack
WHOLE_NUMBERS = (STEP_COUNTER, WINDOW_INDEX)
# Norms of a Swin's C2 to C4: detectors need them, classifiers do not have them.
OUTPUT_NORMS = ("norm_c2.", "norm_c3.", "norm_c4.")
COMPLEX = (torch.complex32, torch.complex64, torch.complex128)


def first_problem(given: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> str | None:
    """In a few words, why the weights are not exactly those of a backbone; None if they are."""
    for name in ours:
        counter = name.endswith(WHOLE_NUMBERS)
        if name not in given and optional(name):
            continue
        if name not in given:
            return f"{name} is missing"
        theirs = given[name]
        if theirs.shape != ours[name].shape:
            return f"{name} is {tuple(theirs.shape)} instead of {tuple(ours[name].shape)}"
        if counter and theirs.dtype in (torch.bool, *COMPLEX):
            return f"{name} is {theirs.dtype} instead of a whole number"
        if not counter and not theirs.is_floating_point():
            return f"{name} is {theirs.dtype} instead of floating-point numbers"
    # A deeper network of the same kind has everything that a shallower one needs, and more.
    modules = {name.split(".")[0] for name in ours}
    more = [name for name in given if name not in ours and name.split(".")[0] in modules]
    return f"{more[0]} is unexpected" if more else None


def fitting_part(given: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors that fit by name, shape and kind of numbers, in our order; a step counter only with
    its weight."""
    same = {
        name
        for name in ours
        if name in given
        and given[name].shape == ours[name].shape
        and (given[name].is_floating_point() or name.endswith(WHOLE_NUMBERS))
    }
    return {n: given[n] for n in ours if n in same and layer_weight(n) in same}


def required(ours: Mapping[str, Tensor]) -> list[str]:
    """Names that a file must have."""
    return [name for name in ours if not optional(name)]


def optional(name: str) -> bool:
    """Whether a file of the whole backbone may lack a tensor."""
    return name.endswith(WHOLE_NUMBERS) or name.startswith(OUTPUT_NORMS)


def layer_weight(name: str) -> str:
    """The weight beside a step counter, which means nothing alone; other names are unchanged."""
    stem = name.removesuffix(STEP_COUNTER)
    return f"{stem}weight" if stem != name else name


def first_bad_value(given: Mapping[str, Tensor]) -> str | None:
    """In a few words, which tensor holds impossible numbers, as those of a run that diverged do."""
    for name, tensor in given.items():
        values = tensor.float()  # 8-bit floats have no comparisons
        bad = int((~values.isfinite()).sum())
        if bad:
            return f"{name} has {bad} NaN or infinite values (of {values.numel()})"
        if name.endswith("running_var") and bool((values < 0).any()):
            return f"{name} has {int((values < 0).sum())} negative variances (of {values.numel()})"
        if name.endswith(STEP_COUNTER) and bool((values < 0).any()):
            return f"{name} has counted a negative number of steps"
        if name.endswith(WINDOW_INDEX):
            window = round(tensor.numel() ** 0.25)
            if not torch.equal(tensor.flatten().cpu(), relative_position_index(window)):
                return f"{name} is not the index of a window of {window} x {window} cells"
    return None


def same_weights(one: Mapping[str, Tensor], two: Mapping[str, Tensor]) -> bool:
    """Whether two sets of weights hold the same names and numbers."""
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
