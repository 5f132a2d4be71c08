"""What a run has written, read back for reports."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from aligndet.config import Config, load_config, plain
from data.build import DataConfig
from data.json_files import read_json

MOST_BYTES = 50_000_000  # of a JSON that a report reads; COCO's would take half a minute
FOLD = re.compile(r"_fold(\d+)")  # in names of files by `python -m data.subset`
SEED_KEYS = ("seed", "output_dir")  # what runs that are repeated with other seeds differ in


@dataclass(frozen=True)
class RunFiles:
    """The files of a run directory; those that a run has not (yet) written are empty."""

    path: Path
    config: Mapping[str, Any]  # sections of keys
    lines: list[dict[str, Any]]  # of metrics.jsonl
    results: Mapping[str, float | None]
    per_class: Mapping[str, float | None]
    manifest: Mapping[str, Any]

    @classmethod
    def read(cls, path: str | Path) -> RunFiles:
        """Read the directory of a run.

        Raises:
            ValueError: it is none, or a file of it cannot be read.
        """
        path = Path(path)
        if not (path / "config.yaml").is_file() or not (path / "metrics.jsonl").is_file():
            raise ValueError(
                f"{path}: holds no config.yaml and metrics.jsonl; give the output_dir of a run"
            )
        with open(path / "config.yaml", encoding="utf-8") as file:
            config = yaml.safe_load(file)
        text = (path / "metrics.jsonl").read_text(encoding="utf-8")
        return cls(
            path,
            config,
            list(_whole_lines(text, path / "metrics.jsonl")),
            *(_json_of(path / f"{name}.json") for name in ("results", "per_class", "manifest")),
        )

    @property
    def name(self) -> str:
        """The last part of its path."""
        return self.path.resolve().name

    @cached_property
    def settings(self) -> Config:
        """Its config, with the defaults of keys that it does not name."""
        return load_config(self.path / "config.yaml")

    @property
    def data(self) -> DataConfig:
        """The `data` section of its settings."""
        return self.settings.data

    @cached_property
    def detections(self) -> list[dict[str, Any]] | None:
        """COCO results entries of the final evaluation; None if there are none."""
        path = self.path / "detections.json"
        return read_json(path) if path.is_file() else None

    @property
    def pre_trains(self) -> bool:
        """Whether it is of box-domain pre-training."""
        return any("contrast_minus_floor" in line for line in self.lines)

    def curve(self, key: str) -> list[tuple[float, float | None]]:
        """The values of a key over the steps."""
        return [(line["step"], line[key]) for line in self.lines if key in line]

    def scores(self, key: str = "AP") -> list[tuple[float, float | None]]:
        """A score over the steps: of the evaluations in training, and the final one."""
        curve = self.curve(key)
        last = self.lines[-1]["step"] if self.lines else 0
        if key in self.results and (not curve or curve[-1][0] < last):
            curve.append((last, self.results[key]))
        return curve

    def flat(self) -> dict[str, Any]:
        """The config as dotted keys, with the defaults of those that it does not name."""
        return dict(_flattened(plain(self.settings)))

    def repeated(self) -> str:
        """Equal for runs that differ in their seed alone, in the start of the same kind, and in
        which part of the labels they learn from."""
        settings = {key: value for key, value in self.flat().items() if _counts(key)}
        labels = settings["data.train.annotations"]
        settings["data.train.annotations"] = labels and FOLD.sub("", labels)
        return json.dumps([self.start, settings])

    @property
    def fold(self) -> int:
        """Which part of the labels it learns from, by the name of their file; -1: all of them."""
        found = FOLD.search(self.data.train.annotations or "")
        return int(found[1]) if found else -1

    @property
    def start(self) -> str:
        """What fine-tuning began with, by its manifest."""
        if not self.manifest:
            return self.name
        beyond = any(not name.startswith("backbone.") for name in self.manifest["loaded"])
        if beyond:
            return "pre-trained detector"
        return "backbone only" if self.manifest["loaded"] else "random weights"


def _counts(key: str) -> bool:
    """Whether runs that differ in a key are not the same run repeated: the weights of their
    backbones, too, may come from runs of different seeds."""
    return key not in (*SEED_KEYS, "model.backbone_weights")


def _flattened(section: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in section.items():
        if isinstance(value, Mapping) and value:
            yield from _flattened(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _whole_lines(text: str, path: Path) -> Iterator[dict[str, Any]]:
    """The lines, of which the last may be cut off, since the run may still write."""
    lines = text.splitlines()
    for number, line in enumerate(lines, 1):
        try:
            yield json.loads(line)
        except ValueError:
            if number < len(lines):
                raise ValueError(f"{path}: line {number} is no JSON") from None


def _json_of(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}
