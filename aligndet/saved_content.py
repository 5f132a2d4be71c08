"""What our files hold: `weights.pt` of each stage, and `last.pt`, the state of a run.

Entries that are not listed here are left alone: newer versions may write more. The keys of a
model's config are all checked, since a network without one of them is another network.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from data.images import ImageReading
from models import checksum
from models.backbone import BACKBONES, NORMS
from models.backbone_fit import first_bad_value
from models.checks import require_choice, require_range
from models.detector import DETECTORS, ModelConfig
from models.from_mapping import from_mapping
from models.plain_content import entries

PLAIN = (Mapping, list, tuple, str, bool, int, float, type(None))
MOST_PIXELS = 100_000  # of a side of the images in evaluation


def check_content(content: Any) -> None:
    """Check the content of a file against what its kind must hold.

    Raises:
        ValueError: what is wrong, in a few words that follow the file's name.
    """
    if not isinstance(content, Mapping) or "model" not in content:
        raise ValueError("not a checkpoint of this project (no entry 'model')")
    required: dict[str, Check] = {"model": check_model}
    if "stage" in content:
        if content["stage"] not in tuple(STAGES):
            raise ValueError(f"its entry 'stage' is {content['stage']!r:.40}, which is unknown")
        required |= STAGES[content["stage"]]
    elif "optimizer" in content:
        required |= STATE
    for key in required:
        if key not in content:
            raise ValueError(f"has no entry {key!r}")
    for key, check in (required | OPTIONAL).items():
        if key in content:
            try:
                check(content[key])
            except ValueError as error:
                raise ValueError(f"its entry {key!r} {error}") from None


def check_model(weights: Any) -> None:
    """Names and tensors of real or whole numbers, all finite."""
    check_mapping(weights)
    for name, tensor in weights.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise ValueError(f"holds {name!r:.60}, which is not a tensor with a name")
        if kind_of(tensor.dtype) is None:
            raise ValueError(f"holds {name}, whose numbers are {words(tensor.dtype)}")
    if bad := first_bad_value(weights):
        raise ValueError(f"is of training that diverged ({bad})")


def check_backbone_config(config: Any) -> None:
    """The backbone's name."""
    check_mapping(config)
    require_choice("its backbone", config.get("backbone"), BACKBONES)


def check_model_config(config: Any) -> None:
    """See `saved_model_config`."""
    saved_model_config(config)


def check_run_config(config: Any) -> None:
    """Nested sections of plain values; `RunDirectory.find` compares them with those of the run."""
    check_mapping(config)
    for _, key, value in entries(config):
        if not isinstance(key, str | int) or not isinstance(value, PLAIN):
            raise ValueError(f"has {key!r:.40}: {type(value).__name__}, which is no setting")


def saved_model_config(config: Any) -> ModelConfig:
    """The `model` section of a file's config, without the path of its backbone's weights.

    Keys that an older version did not write have their defaults.

    Raises:
        ValueError: a value is unusable, or a key is of a newer version.
    """
    check_mapping(config)
    for key in ("detector", "backbone", "options"):
        if key not in config:
            raise ValueError(f"has no {key!r}")
    known_keys(config, ModelConfig)
    try:
        return _checked_model_config(config)
    except ValueError as error:
        raise ValueError(f"cannot be used: {error}") from None


def _checked_model_config(config: Mapping[str, Any]) -> ModelConfig:
    result = from_mapping(ModelConfig, {**config, "backbone_weights": None}, "model.")
    require_choice("model.detector", result.detector, DETECTORS)
    require_choice("model.backbone", result.backbone, BACKBONES)
    require_choice("model.norm", result.norm, NORMS)
    require_range("model.frozen_stages", result.frozen_stages, least=0, most=5)
    options = DETECTORS[result.detector][1]
    known_keys(result.options, options)
    from_mapping(options, result.options, "model.options.")
    return result


def known_keys(section: Mapping[str, Any], cls: type) -> None:
    """Raise a ValueError if a section has a key that its dataclass lacks."""
    names = {field.name for field in dataclasses.fields(cls)}
    unknown = [key for key in section if key not in names]
    if unknown:
        raise ValueError(
            f"has the key {unknown[0]!r:.40}, which this version does not know: update this project"
        )


def check_texts(values: Any) -> None:
    """A list of text."""
    if not isinstance(values, (list, tuple)) or not all(isinstance(v, str) for v in values):
        raise ValueError("is not a list of text")


def check_categories(categories: Any) -> None:
    """As many ids as names, at least one; an id is a whole number or text, and no two are alike."""
    check_mapping(categories)
    ids, names = categories.get("ids"), categories.get("names")
    try:
        check_texts(names)
        sound = isinstance(ids, (list, tuple)) and len(ids) == len(names) == len(set(ids)) > 0
        sound = sound and all(type(number) in (int, str) for number in ids)
    except (ValueError, TypeError):
        sound = False
    if not sound:
        raise ValueError(f"has ids {ids!r:.40} and names {names!r:.40}, which do not go together")


def check_input_sides(sides: Any) -> None:
    """Two whole numbers of pixels."""
    two = isinstance(sides, Sequence) and len(sides) == 2
    if not two or not all(type(side) is int and 1 <= side <= MOST_PIXELS for side in sides):
        raise ValueError(f"is {sides!r:.60}, not two whole numbers of pixels")


def check_reading(reading: Any) -> None:
    """The fields of an `ImageReading`."""
    check_mapping(reading)
    known_keys(reading, ImageReading)
    from_mapping(ImageReading, reading)


def check_inputs(inputs: Any) -> None:
    """A digest, as text, or None for each of some names."""
    check_mapping(inputs)
    for key, digest in inputs.items():
        if not isinstance(key, str) or not isinstance(digest, str | None):
            raise ValueError(f"has {key!r:.40}: {digest!r:.40}, which is no digest")


def check_mapping(value: Any) -> None:
    """Names and values."""
    if not isinstance(value, Mapping):
        raise ValueError(f"is {value!r:.40}, not a mapping")


def whole_number(least: int) -> Check:
    """A check for a whole number that is at least `least`."""

    def check(value: Any) -> None:
        if type(value) is not int or value < least:
            raise ValueError(f"is {value!r:.40}, not a whole number of at least {least}")

    return check


def check_checksum_entry(value: Any) -> None:
    """A checksum of ours; `models.weights_file` has compared it."""
    if not isinstance(value, str) or not value.startswith(checksum.FORM):
        raise ValueError(f"is {value!r:.40}, not a checksum")


def check_percent(value: Any) -> None:
    """A finite number."""
    if type(value) is not float or not math.isfinite(value):
        raise ValueError(f"is {value!r:.40}, not a number")


def kind_of(dtype: torch.dtype) -> str | None:
    """`real` or `whole` numbers; None: neither occurs in weights (complex, bool, 8-bit floats)."""
    if dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        return "real"
    return "whole" if dtype in (torch.int64, torch.int32, torch.int16, torch.uint8) else None


def words(dtype: torch.dtype) -> str:
    """`float32` for torch.float32."""
    return str(dtype).removeprefix("torch.")


Check = Callable[[Any], None]
STAGES: dict[str, dict[str, Check]] = {
    "image": {"config": check_backbone_config},
    "box": {"config": check_model_config},
    "detector": {
        "config": check_model_config,
        "categories": check_categories,
        "input_sides": check_input_sides,
    },
}
STATE: dict[str, Check] = {
    "step": whole_number(0),
    "optimizer": check_mapping,
    "config": check_run_config,
    "processes": whole_number(1),
}
OPTIONAL: dict[str, Check] = {
    checksum.KEY: check_checksum_entry,  # older files have none
    "classes": check_texts,  # of the image stage
    "reading": check_reading,  # of a detector; older files have none
    "AP": check_percent,  # of weights_best.pt
    "scaler": check_mapping,  # of a state
    "inputs": check_inputs,  # of a state; older files have paths only
}
