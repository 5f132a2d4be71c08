"""Configs: one YAML file per run, dotted overrides, checked against dataclasses.

Each section is the config dataclass of a component, defined beside it; this file only combines and
reads them. There is no inheritance: a file states everything that is not a default.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import yaml

from aligndet.amp import AMP_DTYPES
from aligndet.box_domain import BoxDomainConfig
from aligndet.compiling import COMPILE
from aligndet.evaluate import EvaluationConfig
from aligndet.image_domain import ImageDomainConfig
from aligndet.last_checkpoint import whole_checkpoint
from aligndet.optim import OptimConfig, ScheduleConfig
from aligndet.overrides import apply_override
from aligndet.strict_yaml import load_yaml
from aligndet.transfer import TransferConfig, model_like
from data.build import DataConfig
from data.regular_file import require_regular
from models.checks import require_choice, require_range
from models.detector import ModelConfig, learns_masks
from models.from_mapping import from_mapping

LENGTHS = {"schedule.epochs", "schedule.iterations"}


@dataclass(frozen=True)
class LoopConfig:
    """The `loop` section: when the loop writes."""

    log_every: int = 20  # steps between lines of metrics.jsonl
    checkpoint_every: int = 500  # steps between writes of last.pt
    checkpoint_minutes: float | None = None  # write it after so many minutes too
    tensorboard: bool = False  # write event files for TensorBoard too, if it is installed
    report: bool = True  # write report.html when the run ends, see aligndet/report.py

    def __post_init__(self) -> None:
        require_range("loop.log_every", self.log_every, least=1)
        require_range("loop.checkpoint_every", self.checkpoint_every, least=1)
        require_range("loop.checkpoint_minutes", self.checkpoint_minutes, above=0)


@dataclass(frozen=True)
class Config:
    """All settings of a run."""

    output_dir: str  # the run directory
    seed: int = 0  # of initialisation, order, augmentation and sampling
    device: str = "auto"  # auto, cpu or cuda
    amp: str = "none"  # autocast: none, bf16 or fp16
    compile: str = "none"  # none, or model: torch.compile of its layers, see aligndet/compiling.py
    # Ask for operations that give the same bits each time, slower ones if need be: a CPU does so
    # anyway, a GPU does not (cuDNN, the backward pass of roi_align, scatter-add).
    deterministic: bool = False
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    schedule: ScheduleConfig = field(default_factory=lambda: ScheduleConfig(epochs=12))
    loop: LoopConfig = field(default_factory=LoopConfig)
    image: ImageDomainConfig = field(default_factory=ImageDomainConfig)
    box_domain: BoxDomainConfig = field(default_factory=BoxDomainConfig)
    transfer: TransferConfig = field(default_factory=TransferConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    def __post_init__(self) -> None:
        require_choice("amp", self.amp, AMP_DTYPES)
        require_choice("compile", self.compile, COMPILE)
        if not self.output_dir:
            raise ValueError("output_dir is empty; give the folder of the run")

    @property
    def pretrains_masks(self) -> bool:
        """Whether box-domain pre-training needs the masks of the proposals."""
        return learns_masks(self.model.detector) and self.box_domain.mask_weight > 0


def load_config(path: str | Path, overrides: Sequence[str] = (), init: str | None = None) -> Config:
    """Read a YAML file and apply `key=value` overrides (`data.batch_size=4`).

    Args:
        path: the YAML file.
        overrides: applied in their order.
        init: weights file (or its run directory) that says what `model` is, see `model_like`.

    Raises:
        ValueError: the file is missing or not YAML, a key is unknown (the message names the nearest
            valid one), or a value has the wrong type or range.
    """
    require_regular(path)
    try:
        content = load_yaml(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path}: no such config; the examples are in configs/") from None
    except OSError as error:
        raise ValueError(
            f"{path}: cannot be read ({error.strerror}); give --config a YAML file"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: not valid YAML ({reason}); correct it") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: not a mapping of config keys; see the examples in configs/")
    given = {override.partition("=")[0] for override in overrides}
    if len(LENGTHS & given) == 1 and isinstance(content.get("schedule"), dict):
        for key in LENGTHS:  # the length on the command line replaces that of the file
            content["schedule"].pop(key.split(".")[1], None)
    for override in overrides:
        apply_override(content, override, Config)
    config = build_config(content)
    if init is None:
        return config
    if not os.path.exists(init):  # a run that is resumed needs no other file
        init = whole_checkpoint(Path(config.output_dir)) or init
    content["model"] = model_like(init, content.get("model", {}))
    return build_config(content)


def build_config(content: Mapping[str, Any]) -> Config:
    """A config from nested mappings, such as the content of a YAML file.

    `~` at the start of a text is the user's home folder, and `data.root` is put before the other
    paths of the data.

    Raises:
        ValueError: see `load_config`.
    """
    if content.get("amp") in (False, "off"):  # YAML reads off and no as false
        content = {**content, "amp": "none"}
    config = from_mapping(Config, _with_home(content), unknown=_unknown_key)
    return dataclasses.replace(config, data=config.data.rooted())


def _with_home(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _with_home(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_with_home(entry) for entry in value]
    return os.path.expanduser(value) if isinstance(value, str) else value


def _first_leaf(key: str, value: Any) -> str:
    while isinstance(value, Mapping) and value:
        name, value = next(iter(value.items()))
        key = f"{key}.{name}"
    return key


def _unknown_key(key: str, value: Any, known: list[str]) -> NoReturn:
    key, keys = _first_leaf(key, value)[:80], all_keys(Config)
    same_name = [k for k in keys if k.split(".")[-1] == key.split(".")[-1]]  # wrong section
    nearest = difflib.get_close_matches(key, same_name or keys, n=1, cutoff=0.0)[0]
    raise ValueError(f"unknown config key {key}; did you mean {nearest}?")


def all_keys(cls: type, prefix: str = "") -> list[str]:
    """Dotted names of every leaf of a config dataclass."""
    keys: list[str] = []
    for name, hint in typing.get_type_hints(cls).items():
        nested = dataclasses.is_dataclass(hint)
        keys += all_keys(hint, f"{prefix}{name}.") if nested else [prefix + name]
    return keys


def plain(config: Any) -> Any:
    """A config as nested dicts and lists of plain values, for YAML and checkpoints."""
    if dataclasses.is_dataclass(config):
        return {f.name: plain(getattr(config, f.name)) for f in dataclasses.fields(config)}
    if isinstance(config, Mapping):
        return {key: plain(value) for key, value in config.items()}
    return [plain(v) for v in config] if isinstance(config, (list, tuple)) else config


def dump_yaml(config: Config) -> str:
    """The resolved config as YAML, every key written out."""
    return yaml.safe_dump(plain(config), sort_keys=False)


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """`key: old -> new` for each leaf in which two plain configs differ."""
    found = []
    for key in sorted(old.keys() | new.keys()):
        a, b = old.get(key), new.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            found.append(f"{prefix}{key}: {a} -> {b}")
    return found


def merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings in which the values of `new` replace those of `old`."""
    both = {
        key: merged(old[key], value) if isinstance(value, Mapping) else value
        for key, value in new.items()
        if isinstance(old.get(key), Mapping) == isinstance(value, Mapping)
    }
    return {**old, **new, **both}
