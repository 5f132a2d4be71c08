"""Configs: one YAML file a run, dotted overrides, checked against dataclasses.

Each section is the config dataclass of a component and lives beside it; this file only puts them
together and reads them. There is no inheritance: a file says everything that is not a default.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from aligndet.amp import AMP_DTYPES
from aligndet.box_domain import BoxDomainConfig
from aligndet.evaluate import EvaluationConfig
from aligndet.image_domain import ImageDomainConfig
from aligndet.optim import OptimConfig, ScheduleConfig
from aligndet.transfer import TransferConfig
from aligndet.unique_keys import load_yaml
from data.build import DataConfig
from models.detector import ModelConfig

LENGTHS = {"schedule.epochs", "schedule.iterations"}


@dataclass(frozen=True)
class LoopConfig:
    """The ``loop`` section: when the loop writes."""

    log_every: int = 20  # steps between lines of metrics.jsonl
    checkpoint_every: int = 500  # steps between writes of last.pt

    def __post_init__(self) -> None:
        if min(self.log_every, self.checkpoint_every) < 1:
            raise ValueError("loop.log_every and loop.checkpoint_every must be at least 1")


@dataclass(frozen=True)
class Config:
    """All of a run."""

    output_dir: str  # the run directory
    seed: int = 0  # of initialisation, order, augmentation and sampling
    device: str = "auto"  # auto, cpu or cuda
    amp: str = "none"  # autocast: none, bf16 or fp16
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
        if self.amp not in AMP_DTYPES:
            raise ValueError(f"amp is {self.amp!r}; set it to one of {', '.join(AMP_DTYPES)}")


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file and apply ``key=value`` overrides (``data.batch_size=4``).

    Raises:
        ValueError: the file is missing or not YAML, a key is unknown (the message names the nearest
            valid one), or a value has the wrong type or range.
    """
    try:
        content = load_yaml(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path}: no such config; the examples are in configs/") from None
    except (yaml.YAMLError, UnicodeDecodeError, IsADirectoryError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: not valid YAML ({reason}); correct it") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: not a mapping of config keys; see the examples in configs/")
    given = {override.partition("=")[0] for override in overrides}
    if len(LENGTHS & given) == 1 and isinstance(content.get("schedule"), dict):
        for key in LENGTHS:  # the length on the command line takes the place of the file's
            content["schedule"].pop(key.split(".")[1], None)
    for override in overrides:
        _apply_override(content, override)
    return build(Config, content)


def _apply_override(content: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ValueError(f"override {override!r} is not of the form key=value")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = text
    *sections, last = key.split(".")
    for section in sections:
        content = content.setdefault(section, {})
        if not isinstance(content, dict):
            raise ValueError(f"override {override!r}: {section} is a value, not a section")
    content[last] = value


def build(cls: type, content: Mapping[str, Any], prefix: str = "") -> Any:
    """Make a config dataclass from nested mappings, checking names and types.

    Raises:
        ValueError: one sentence that names the dotted key.
    """
    fields = {f.name: f for f in dataclasses.fields(cls)}
    hints = typing.get_type_hints(cls)
    values = {}
    for name, value in content.items():
        if name not in fields:
            _unknown_key(_first_leaf(f"{prefix}{name}", value))
        values[name] = _convert(value, hints[name], f"{prefix}{name}")
    for f in fields.values():
        required = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if required and f.name not in values:
            raise ValueError(f"{prefix}{f.name} is not set; add it to the config")
    return cls(**values)


def _first_leaf(key: str, value: Any) -> str:
    while isinstance(value, Mapping) and value:
        name, value = next(iter(value.items()))
        key = f"{key}.{name}"
    return key


def _unknown_key(key: str) -> typing.NoReturn:
    keys = all_keys(Config)
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


def _convert(value: Any, hint: Any, key: str) -> Any:
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise ValueError(f"{key} is {value!r}; it must be a section of key: value lines")
        return build(hint, value, f"{key}.")
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _convert(value, next(a for a in arguments if a is not type(None)), key)
    if origin is tuple:
        items = value if isinstance(value, (list, tuple)) else [value]
        return tuple(_convert(item, arguments[0], key) for item in items)
    if origin is not None:  # a free mapping, checked by whoever owns it
        if not isinstance(value, Mapping):
            raise ValueError(f"{key} is {value!r}; it must be a section of key: value lines")
        return dict(value)
    if hint is float:
        try:
            number = float(value)  # YAML reads 1e-4 (without a dot) as text
        except (TypeError, ValueError):
            _wrong(value, hint, key)
        if isinstance(value, bool) or not math.isfinite(number):
            _wrong(value, hint, key)
        return number
    if key == "amp" and value is False:  # YAML reads off and no as false
        return "none"
    if type(value) is not hint:
        _wrong(value, hint, key)
    return value


def _wrong(value: Any, hint: type, key: str) -> typing.NoReturn:
    kinds = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    raise ValueError(f"{key} is {value!r}; it must be {kinds[hint]}")


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
    """``key: old -> new`` for each leaf in which two plain configs differ."""
    found = []
    for key in sorted(old.keys() | new.keys()):
        a, b = old.get(key), new.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            found.append(f"{prefix}{key}: {a} -> {b}")
    return found
