"""From a pre-trained weights file to a detector, with a manifest of what became of each weight."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from aligndet import checkpoint
from aligndet.adapters import PROJECTOR, adapter_class
from aligndet.published_detr import is_published_detr, start_file
from aligndet.saved_content import kind_of, saved_model_config, words
from data.coco import Categories
from data.images import AS_STORED, ImageReading
from data.json_files import write_json_atomic
from models.detector import DETECTORS, ModelConfig, build_detector
from models.from_mapping import from_mapping
from models.renaming import count_modules

# Options that say how many layers there are, each of which has weights
DEPTHS = ("num_convs", "mask_convs", "encoder_layers", "decoder_layers")


@dataclass(frozen=True)
class TransferConfig:
    """The `transfer` section: what is taken from `--init`."""

    # The output layers of box regression and centerness are class-agnostic in pre-training, so they
    # fit if they are class-agnostic here too. The authors drop them; keeping them measured as good
    # or better (docs/results_first_study.md).
    keep_box_outputs: bool = True
    # Take only the backbone from --init, to measure what neck and head bring.
    backbone_only: bool = False
    leave_out: tuple[str, ...] = ()  # more parts to leave out: "neck.", "head.cls_tower.", ...

    def drops(self, key: str, prefixes: tuple[str, ...]) -> bool:
        """Whether a weight of the file is left out; `prefixes` are those of dropped layers."""
        if self.backbone_only and not key.startswith("backbone."):
            return True
        return key.startswith(prefixes + self.leave_out)

    @property
    def takes_backbone(self) -> bool:
        """Whether all of the backbone comes from the file."""
        return not any(
            prefix.startswith("backbone.") or "backbone.".startswith(prefix)
            for prefix in self.leave_out
        )

    def check(self, names: Iterable[str]) -> None:
        """Check that each entry of `leave_out` is the start of some weight's name.

        Raises:
            ValueError: names the entry that is not.
        """
        names = list(names)
        for prefix in self.leave_out:
            if not prefix or not any(name.startswith(prefix) for name in names):
                parts = ", ".join(sorted({f"{_module_of(name)}." for name in names}))
                raise ValueError(
                    f"transfer.leave_out names {prefix!r}, but no weight in the file starts with "
                    f"it; its parts are {parts}"
                )


@dataclass(frozen=True)
class Manifest:
    """Names of weights; every weight of the file and of the detector is in exactly one list."""

    source: str | None  # the file, or None for a random start
    loaded: list[str]  # from the file into the detector
    dropped: list[str]  # in the file, not used
    fresh: list[str]  # in the detector, as they were: random, or of `model.backbone_weights`

    def save(self, path: str | Path) -> None:
        """Write as JSON."""
        write_json_atomic(asdict(self), path)

    def summary(self) -> str:
        """A few lines for the terminal: modules and the number of their tensors."""
        lines = [f"weights from {self.source}" if self.source else "no weights: a random start"]
        for kind in ("loaded", "dropped", "fresh"):
            names = getattr(self, kind)
            lines.append(f"  {kind:8}{len(names):4} tensors  {count_modules(names, _module_of)}")
        return "\n".join(lines)


def _module_of(name: str) -> str:
    parts = name.split(".")
    return parts[0] if name.startswith(("backbone.", PROJECTOR)) else ".".join(parts[:2])


def pretrained_file(model: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Any]:
    """Content of a `weights.pt` of box-domain pre-training.

    Args:
        model: named as in the detector, see `BoxDomain.weights`.
        config: what `build_detector` built it from.
    """
    return {"model": dict(model), "stage": "box", "config": asdict(config)}


def backbone_file(
    model: Mapping[str, Tensor], config: ModelConfig, classes: Sequence[str]
) -> dict[str, Any]:
    """Content of a `weights.pt` of image-domain pre-training, for `model.backbone_weights`.

    Args:
        model: named as torchvision's classifier, with or without its last layer.
        config: its backbone's name.
        classes: names of the classes of the last layer, if there is one.
    """
    return {
        "model": dict(model),
        "stage": "image",
        "config": {"backbone": config.backbone},
        "classes": list(classes),
    }


def detector_file(
    detector: nn.Module,
    config: ModelConfig,
    categories: Categories,
    input_sides: tuple[int, int],
    reading: ImageReading = AS_STORED,
) -> dict[str, Any]:
    """Content of a fine-tuned `weights.pt`: the model and all that is needed to use it.

    Args:
        detector: with its weights.
        config: what `build_detector` built it from.
        categories: its classes.
        input_sides: short side and cap of the long side of the images in evaluation.
        reading: how its images were read.
    """
    return {
        "model": detector.state_dict(),
        "stage": "detector",
        "config": asdict(config),
        "categories": {"ids": list(categories.ids), "names": list(categories.names)},
        "input_sides": list(input_sides),
        "reading": reading.look(),
    }


def load_pretrained(
    detector: nn.Module, name: str, path: str | Path, categories: Categories, config: TransferConfig
) -> Manifest:
    """Start a detector from a `weights.pt` of box-domain pre-training or of another fine-tuning, or
    from the weights that DETR's authors published.

    Args:
        detector: filled in place.
        name: its key in `aligndet.adapters.ADAPTERS`.
        path: the file.
        categories: classes the detector is built for; a fine-tuned classifier is kept if its
            classes are the same.

    Raises:
        ValueError: the file is unreadable, or belongs to another detector or backbone, or a weight
            of the file or the detector would be unaccounted for.
    """
    content = load_start(path, categories)
    if content.get("stage") == "image":
        raise ValueError(
            f"{path}: holds only a backbone; set model.backbone_weights to it and leave out --init"
        )
    if "stage" not in content:
        raise ValueError(f"{path}: is the state of a run, not its result; give --init weights.pt")
    adapter = adapter_class(name)
    saved = content.get("categories", {}).get("names")
    layers = adapter.class_layers(detector)
    if content.get("stage") == "box":
        # Older files have the projector under the classifier's names, which are dropped anyway.
        layers += (PROJECTOR, *(() if config.keep_box_outputs else adapter.box_outputs))
    elif list(saved) == list(categories.names):
        layers = ()
    config.check(content["model"])
    expected = detector.state_dict()
    dropped = [key for key in content["model"] if config.drops(key, layers)]
    weights = {k: v for k, v in content["model"].items() if not config.drops(k, layers)}
    fresh = [key for key in expected if config.drops(key, layers)]
    problem = first_misfit(weights, expected, fresh)
    if problem:
        theirs = content["config"]
        raise ValueError(
            f"{path}: does not fit this {name} ({problem}); it was written for "
            f"{theirs['detector']} with {theirs['backbone']} and options {theirs['options']}: "
            "set model.* to these, or give another file"
        )
    with torch.no_grad():
        for key, value in weights.items():
            expected[key].copy_(value)
    return Manifest(str(path), list(weights), dropped, fresh)


def load_start(path: str | Path, categories: Categories | None = None) -> dict[str, Any]:
    """The content of a file for `--init`; `categories` are those to fine-tune on.

    Raises:
        ValueError: the file is unreadable.
    """
    content = checkpoint.load(path, "--init")
    if not is_published_detr(content):
        return content
    ids, names = (categories.ids, categories.names) if categories else ((), ())
    try:
        return start_file(content["model"], ids, list(names))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def model_like(path: str | Path, given: Mapping[str, Any]) -> dict[str, Any]:
    """The `model` section of a config for a detector that starts from a `weights.pt`.

    The detector, its backbone and those options that make its network (`NETWORK` of its config)
    are the file's; the other options are those of `given`, since losses and samples may differ.

    Args:
        path: the file, or the directory of its run.
        given: the `model` section of the config file and the command line.

    Raises:
        ValueError: a key is given that differs from the file's; the message names both.
    """
    theirs = model_section(path)
    if theirs is None:
        return dict(given)  # no detector's weights: load_pretrained says what they are
    options, saved = given.get("options") or {}, theirs["options"]
    config_class = DETECTORS[theirs["detector"]][1]
    network = {key: saved[key] for key in config_class.NETWORK if key in saved}
    fixed = {key: theirs[key] for key in ("detector", "backbone")}
    problems = [
        f"model.{key}={given[key]} is given, but the file's is {value}"
        for key, value in fixed.items()
        if given.get(key, value) != value
    ]
    if not problems:
        ours = from_mapping(config_class, options, "model.options.")
        made = from_mapping(config_class, saved, "model.options.")
        problems = [
            f"model.options.{key}={value} is given, but the file's is {getattr(made, key)}"
            for key, value in ((key, getattr(ours, key)) for key in config_class.NETWORK)
            if key in options and value != getattr(made, key)
        ]
    if problems:
        raise ValueError(f"{path}: {problems[0]}; leave the key out, or give --init another file")
    kept = {key: theirs[key] for key in ("norm", "frozen_stages") if key in theirs}
    return {**kept, **given, **fixed, "options": {**network, **options}}


def model_section(path: str | Path) -> Mapping[str, Any] | None:
    """The `model` section of the config in a `weights.pt` or, of the whole run, in a `last.pt`;
    None: it holds no detector.

    Raises:
        ValueError: the file is unreadable, or its config is unusable here.
    """
    content = load_start(path)
    if content.get("stage") in ("box", "detector"):
        check_sizes(path, content)
        return content["config"]
    if "optimizer" not in content:
        return None
    section = content["config"].get("model")
    try:
        saved_model_config(section)
    except ValueError as error:
        raise ValueError(
            f"{path}: the model in its config {error}; give --init another file"
        ) from None
    return section


def check_sizes(path: str | Path, content: Mapping[str, Any]) -> None:
    """Check that the network in a file's config is as large as its weights, before it is built: a
    wrong number may ask for more memory than there is.

    Raises:
        ValueError: it is not.
    """
    config, weights = saved_model_config(content["config"]), content["model"]
    names = content.get("categories", {}).get("names", ["object"])
    layers = () if "categories" in content else adapter_class(config.detector).class_layers
    problem = None
    try:
        if max(config.options.get(key, 0) for key in DEPTHS) > len(weights):
            raise RuntimeError("it has more layers than there are weights")
        with torch.device("meta"):
            detector = build_detector(config, len(names))
        expected = detector.state_dict()
        same = {k: v for k, v in weights.items() if k in expected}
        if layers:
            same = {k: v for k, v in same.items() if not k.startswith(layers(detector))}
        problem = first_misfit(same, expected, fresh=expected)
    except RuntimeError as error:  # too large for a tensor
        problem = str(error)
    if problem:
        raise ValueError(
            f"{path}: its weights are not those of the {config.detector} in its config "
            f"({problem}); give another weights.pt"
        )


class SavedDetector(NamedTuple):
    """What `detector_file` was given."""

    detector: nn.Module
    categories: Categories
    input_sides: tuple[int, int]
    reading: ImageReading


def read_detector(path: str | Path, purpose: str = "--checkpoint or --weights") -> SavedDetector:
    """Rebuild a fine-tuned detector from its `weights.pt` alone, for evaluation or prediction.

    Args:
        path: the file, or the directory of its run.
        purpose: what named it, for the error message.

    Raises:
        ValueError: the file is unreadable or not the weights of a fine-tuned detector.
    """
    content = checkpoint.load(path, purpose)
    if content.get("stage") != "detector":
        raise ValueError(
            f"{path}: not a fine-tuned detector (stage {content.get('stage')}); "
            "give the weights.pt that finetune.py wrote"
        )
    saved = content["categories"]
    categories = Categories(tuple(saved["ids"]), tuple(saved["names"]))
    config = saved_model_config(content["config"])
    check_sizes(path, content)
    detector = build_detector(config, len(categories))
    if problem := first_misfit(content["model"], detector.state_dict()):
        raise ValueError(
            f"{path}: its weights are not those of the detector in its config ({problem}); give "
            "the weights.pt that finetune.py wrote"
        )
    detector.load_state_dict(content["model"])
    reading = ImageReading(**content.get("reading", {}))  # older files have none
    return SavedDetector(detector, categories, tuple(content["input_sides"]), reading)


def backbone_manifest(detector: nn.Module) -> Manifest:
    """The manifest of a start from the backbone alone (`model.backbone_weights`)."""
    names, origin = list(detector.state_dict()), detector.backbone.origin
    if origin is None:
        return Manifest(None, [], [], names)
    missing = {f"backbone.{name}" for name in origin.missing}
    loaded = [name for name in names if name.startswith("backbone.") and name not in missing]
    fresh = [name for name in names if name not in set(loaded)]
    return Manifest(origin.file, loaded, list(origin.unused), fresh)


def first_misfit(
    weights: Mapping[str, Tensor], expected: Mapping[str, Tensor], fresh: Iterable[str] = ()
) -> str | None:
    """In a few words, the first weight that cannot be copied to where it belongs; None: all can.

    Real numbers of another precision fit: copying converts them.

    Args:
        weights: of a file.
        expected: where they go; may be on the meta device.
        fresh: names in `expected` that `weights` may lack.
    """
    for key, value in weights.items():
        if key not in expected:
            return f"{key} is not part of it"
        if value.shape != expected[key].shape:
            return f"{key} has shape {tuple(value.shape)}, not {tuple(expected[key].shape)}"
        if kind_of(value.dtype) != kind_of(expected[key].dtype):
            return f"{key} has numbers of {words(value.dtype)}, not {words(expected[key].dtype)}"
    missing = expected.keys() - weights.keys() - set(fresh)
    return f"{sorted(missing)[0]} is missing from the file" if missing else None
