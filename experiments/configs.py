"""The config file of each run of a study."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aligndet.config import build_config, load_config, plain
from experiments.prepare import labels_file, proposals_file, tune_file
from experiments.study import Cell, DataSet, Overrides, Pretraining, Study

Run = Cell | Pretraining


@dataclass(frozen=True)
class Place:
    """Where a study reads and writes, and what it runs on."""

    root: Path  # folder of the data sets
    work: Path  # runs, proposals, label fractions; can be deleted when the study is done
    threads: int = 1  # per run
    device: str = "cpu"

    def folder(self, run: Run) -> Path:
        """The output_dir of a run."""
        return self.work / run.name

    def environment(self) -> dict[str, str]:
        """The environment of a run."""
        return os.environ | {"OMP_NUM_THREADS": str(self.threads)}

    def weights(self, run: Run) -> Path:
        """The file that a run writes last."""
        return self.folder(run) / "weights.pt"


def nested(overrides: Overrides) -> dict[str, Any]:
    """Dotted keys turned into nested mappings."""
    content: dict[str, Any] = {}
    for key, value in overrides.items():
        *sections, last = key.split(".")
        inner = content
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[last] = value
    return content


def common_overrides(study: Study, place: Place, run: Run) -> dict[str, Any]:
    """The keys common to all runs of a stage; those of the detector come last and win."""
    return {
        "output_dir": str(place.folder(run)),
        "device": place.device,
        "loop.report": False,  # the study has a page of its own
        **study.config,
        **study.sets[run.data].config,
        **(study.finetuning if isinstance(run, Cell) else study.pretraining),
        **study.detectors[run.detector],
    }


def labelled_photographs(
    place: Place, data: DataSet, percent: float, seed: int, split: str
) -> dict[str, str]:
    """The keys of the photographs that a run with labels learns from and is scored on."""
    put_aside = split == "tune"
    scored = tune_file(place.work, data) if put_aside else place.root / data.val_annotations
    return {
        "data.train.images": str(place.root / data.train_images),
        "data.train.annotations": str(
            labels_file(place.root, place.work, data, percent, seed, split)
        ),
        "data.val.images": str(place.root / (data.train_images if put_aside else data.val_images)),
        "data.val.annotations": str(scored),
    }


def pretraining_overrides(study: Study, place: Place, run: Pretraining) -> dict[str, Any]:
    """The keys of a pre-training. It names no labels, unless the start is `labelled`: it sees
    photographs and proposals only."""
    start, data = study.starts[run.start], study.sets[run.data]
    if start.labelled:
        seen = labelled_photographs(place, data, 100, run.seed or 0, run.split)
    else:
        boxes = proposals_file(place.work, data, start, run.split)
        seen = {"data.train.images": str(place.root), "data.train.proposals": str(boxes)}
    return {
        **common_overrides(study, place, run),
        **seen,
        **({} if run.seed is None else {"seed": run.seed}),
        **(start.pretraining or {}),
    }


def cell_overrides(study: Study, place: Place, cell: Cell) -> dict[str, Any]:
    """The keys of a fine-tuning run."""
    data = study.sets[cell.data]
    return {
        **common_overrides(study, place, cell),
        **labelled_photographs(place, data, cell.percent, cell.seed, cell.split),
        "schedule.iterations": cell.iterations,
        "evaluation.every": max(1, cell.iterations // study.evaluations),
        "seed": cell.seed,
        **dict(cell.recipe),
        **study.starts[cell.start].finetuning,
    }


def config_of(study: Study, place: Place, run: Run) -> dict[str, Any]:
    """The content of a run's config file."""
    make = cell_overrides if isinstance(run, Cell) else pretraining_overrides
    overrides = make(study, place, run)
    weights = overrides.get("model.backbone_weights")
    if weights is not None:
        overrides["model.backbone_weights"] = str(place.root / weights)
    return nested(overrides)


def resolved(study: Study, place: Place, run: Run) -> dict[str, Any]:
    """Every key of a run's config, without the folders of the machine.

    Raises:
        ValueError: names the wrong key.
    """
    config = without_folders(plain(build_config(config_of(study, place, run))), place)
    variant = study.starts[run.start].variant if isinstance(run, Pretraining) else None
    return config | ({"variant": dict(variant)} if variant else {})


def has_weights(study: Study, place: Place, run: Run) -> bool:
    """Whether a run's weights are in its folder, made with the settings that the study has now."""
    config = place.folder(run) / "config.yaml"
    if not (place.weights(run).exists() and config.exists()):
        return False
    made = without_folders(plain(load_config(config)), place)
    wanted = resolved(study, place, run)
    wanted.pop("variant", None)  # not in the file
    return comparable(study, run, made) == comparable(study, run, wanted)


def without_folders(value: Any, place: Place) -> Any:
    """The values of a config with the folders of the data and of the runs replaced by words."""
    if isinstance(value, dict):
        return {key: without_folders(entry, place) for key, entry in value.items()}
    if isinstance(value, str):
        # Runs first, since their folder may be inside that of the data.
        return value.replace(str(place.work), "RUNS").replace(str(place.root), "DATA")
    return value


def _named(config: dict[str, Any], unnamed: Overrides, prefix: str = "") -> dict[str, Any]:
    """A config without the leaves whose values are in `unnamed`."""
    return {
        key: _named(value, unnamed, f"{prefix}{key}.") if isinstance(value, dict) else value
        for key, value in config.items()
        if f"{prefix}{key}" not in unnamed or unnamed[f"{prefix}{key}"] != value
    }


def comparable(study: Study, run: Run, config: dict[str, Any]) -> dict[str, Any]:
    """The part of a resolved config that the result of a run depends on: not the sections of other
    stages, nor how often it is evaluated.

    Half precision does not count either: it pays on some machines only, and its rounding is theirs.
    """
    config = _named(config, study.unnamed)
    others = ("box_domain",) if isinstance(run, Cell) else ("transfer", "evaluation")
    free = ("output_dir", "device", "amp", "loop", "image", *others)
    kept = {key: value for key, value in config.items() if key not in free}
    if isinstance(run, Cell):
        kept["evaluation"] = {k: v for k, v in config["evaluation"].items() if k != "every"}
    return kept
