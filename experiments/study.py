"""A study is one YAML: data sets, detectors, starts and the comparisons between them. Here it is
read, checked and expanded into the runs it consists of.

A *start* is what a detector is fine-tuned from: its backbone alone, or a box-domain pre-training
of some kind. A *cell* is one fine-tuning run. A *block* is one comparison: the product of its lists
of data sets, detectors, starts, label fractions, lengths and seeds. Blocks share the cells they
have in common.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from aligndet.strict_yaml import load_yaml
from data.errors import DataError
from models.from_mapping import from_mapping

# Selective search, the same with masks, its boxes moved to random places, or the labelled boxes: an
# upper bound.
PROPOSALS = ("search", "masks", "random", "labels")
METRICS = ("AP", "segm_AP")  # of boxes, of masks
# Where a run is scored: on the photographs that are reported, or on a part of train that is put
# aside, which neither fine-tuning nor pre-training sees then.
SPLITS = ("val", "tune")
OWN, COMMON = "own", "common"  # a recipe for each start, or the one that is best for all on average
FIGURES = ("curves", "gains", "lengths")  # see experiments.figures

Overrides = Mapping[str, Any]  # dotted config keys, as on a command line


@dataclass(frozen=True)
class DataSet:
    """Photographs; paths are relative to the folder given by `--data`."""

    train_images: str
    train_annotations: str
    val_images: str
    val_annotations: str
    unlabelled: tuple[str, ...] = ()  # folders that pre-training sees besides the train photographs
    recipe_of: str | None = None  # the set whose tuned recipes apply; None: its own
    steps: int = 1  # unit of `iterations` in blocks and tuning
    config: Overrides = field(default_factory=dict)  # of every run on it


@dataclass(frozen=True)
class Start:
    """What fine-tuning starts from."""

    title: str
    pretraining: Overrides | None = None  # of a pre-training of its own; None: it has none
    module: str = "pretrain"  # what runs that pre-training, as in `python -m`
    variant: Overrides = field(default_factory=dict)  # see experiments/variants.py
    proposals: str = "search"  # its boxes: one of PROPOSALS
    unlabelled: bool = True  # whether it sees the set's `unlabelled` photographs too
    # Whether the set's own photographs are repeated until they are about half of all.
    own_half: bool = False
    init_of: str | None = None  # the start whose pre-training it takes instead
    finetuning: Overrides = field(default_factory=dict)
    recipe_of: str | None = None  # the start whose tuned recipes it takes; None: its own
    # Fine-tuning is longer by what the pre-training of this start takes, shared by so many runs.
    longer_by: str | None = None
    shared_by: int = 1

    @property
    def labelled(self) -> bool:
        """Whether its pre-training is a fine-tuning: heads that are warmed up."""
        return self.module == "finetune"


@dataclass(frozen=True)
class Tuning:
    """The recipes to choose from: each start gets the one with the best AP on a spare seed."""

    recipes: tuple[Overrides, ...]  # all of the same keys
    sets: tuple[str, ...]
    detectors: tuple[str, ...]
    starts: tuple[str, ...]
    iterations: float  # in `steps` of the set
    seed: int
    percent: float = 100
    split: str = "val"  # one of SPLITS
    # For detectors that need other recipes; all starts of such a detector choose from the same.
    recipes_of: Mapping[str, tuple[Overrides, ...]] = field(default_factory=dict)

    def recipes_for(self, detector: str) -> tuple[Overrides, ...]:
        """The recipes that the starts of a detector choose from."""
        return self.recipes_of.get(detector, self.recipes)


@dataclass(frozen=True)
class Block:
    """One comparison; the first start is the one that the others are compared with."""

    title: str
    sets: tuple[str, ...]
    detectors: tuple[str, ...]
    starts: tuple[str, ...]
    iterations: tuple[float, ...]  # in `steps` of the set
    seeds: tuple[int, ...]
    percents: tuple[float, ...] = (100,)
    split: str = "val"  # one of SPLITS
    text: str = ""  # the question, for the report
    found: str = ""  # the findings, in words; the numbers are in the table
    figure: str | None = None  # one of FIGURES
    metric: str = "AP"  # one of METRICS
    decide: bool = False  # whether its rows are in the table to decide by
    recipes: tuple[str, ...] = (OWN,)  # OWN, COMMON, or the start whose recipe all take

    @property
    def measure(self) -> str:
        """The name of its metric in tables and figures."""
        return "AP of masks" if self.metric == "segm_AP" else "AP"


@dataclass(frozen=True)
class Pretraining:
    """One box-domain pre-training, shared by all cells that start from it."""

    data: str
    detector: str
    start: str
    split: str = "val"
    seed: int | None = None  # None: it serves all seeds

    @property
    def name(self) -> str:
        """Path of its folder and its JSON."""
        seed = "" if self.seed is None else f"_seed{self.seed}"
        return f"{self.data}/{self.detector}/{self.start}/{prefix(self.split)}pretraining{seed}"


@dataclass(frozen=True)
class Cell:
    """One fine-tuning run."""

    data: str
    detector: str
    start: str
    percent: float
    iterations: int
    recipe: tuple[tuple[str, Any], ...]  # dotted config keys and values, chosen by tuning
    seed: int
    split: str = "val"

    @property
    def name(self) -> str:
        """Path of its folder and its JSON; unique to this cell."""
        recipe = "_".join(f"{key.split('.')[-1]}{value_text(value)}" for key, value in self.recipe)
        run = f"{self.percent:g}percent_{self.iterations}steps_{recipe}_seed{self.seed}"
        return f"{self.data}/{self.detector}/{self.start}/{prefix(self.split)}{run}"


def prefix(split: str) -> str:
    """Of the names of runs that are scored on a split."""
    return "" if split == "val" else f"{split}_"


@dataclass(frozen=True)
class Study:
    """The content of the YAML."""

    title: str
    results: str  # the folder of its results, one JSON per run
    page: str  # the report of them; its pictures are in the folder of that name
    sets: Mapping[str, DataSet]
    detectors: Mapping[str, Overrides]  # config of every run of each
    starts: Mapping[str, Start]
    tuning: Tuning
    blocks: Mapping[str, Block]
    config: Overrides  # of every run
    pretraining: Overrides  # of every pre-training
    finetuning: Overrides  # of every fine-tuning
    # Keys that are newer than some results, with what those runs did.
    unnamed: Overrides = field(default_factory=dict)
    evaluations: int = 4  # of each fine-tuning run, evenly spread; the last is the final one
    pretraining_per_seed: bool = False  # otherwise all seeds of a start share one
    text: str = ""  # what to know before reading the tables
    file: str = ""  # that it was read from

    @classmethod
    def read(cls, path: str | Path) -> Study:
        """Read a study.

        Raises:
            DataError: the file is missing or not YAML, a key is unknown or missing, or something is
                named that the study does not define.
        """
        try:
            content = load_yaml(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            reason = " ".join(str(error).split())
            raise DataError(f"{path}: cannot be read as YAML ({reason}); correct it") from None
        if not isinstance(content, Mapping):
            raise DataError(f"{path}: is not a mapping of keys; see experiments/gains.yaml")
        try:
            study = from_mapping(cls, {**content, "file": str(path)})
        except ValueError as error:
            raise DataError(f"{path}: {error}") from None
        study.check(path)
        return study

    def check(self, path: str | Path) -> None:
        """See `read`."""
        groups = [*self.blocks.items(), ("tuning", self.tuning)]
        for place, group in groups:
            for key in ("sets", "detectors", "starts"):
                for name in getattr(group, key):
                    self._known(path, f"{place}.{key}", name, getattr(self, key))
            self._known(path, f"{place}.split", group.split, SPLITS)
            for recipe in getattr(group, "recipes", ()) if place != "tuning" else ():
                self._known(path, f"{place}.recipes", recipe, (OWN, COMMON, *self.starts))
        for detector in self.tuning.recipes_of:
            self._known(path, "tuning.recipes_of", detector, self.detectors)
        lists = [self.tuning.recipes, *self.tuning.recipes_of.values()]
        keys = {tuple(recipe) for recipe in itertools.chain(*lists)}
        if not all(lists) or len(keys) != 1:
            raise DataError(f"{path}: tuning.recipes needs recipes that all set the same keys")
        for name, block in self.blocks.items():
            self._known(path, f"blocks.{name}.metric", block.metric, METRICS)
            if block.figure is not None:
                self._known(path, f"blocks.{name}.figure", block.figure, FIGURES)
        for name, start in self.starts.items():
            self._known(path, f"starts.{name}.proposals", start.proposals, PROPOSALS)
            for key in ("init_of", "recipe_of", "longer_by"):
                if getattr(start, key) is not None:
                    self._known(path, f"starts.{name}.{key}", getattr(start, key), self.starts)

    @staticmethod
    def _known(path: str | Path, place: str, name: str, choices: Iterable[str]) -> None:
        if name not in choices:
            known = ", ".join(choices)
            raise DataError(f"{path}: {place} names {name!r}, which is not one of {known}")

    def recipe_place(self, data: str, start: str) -> tuple[str, str]:
        """The set and the start whose tuning decides the recipe of a start (or of COMMON) on a
        set."""
        if start != COMMON:
            start = self.starts[start].recipe_of or start
        return self.sets[data].recipe_of or data, start

    def steps(self, data: str, iterations: float) -> int:
        """The steps of a schedule whose length is given in those of its set."""
        return round(iterations * self.sets[data].steps)

    def pretraining_steps(self, data: str, detector: str, start: str) -> int:
        """How long the pre-training of a start is; the order is that of `experiments.configs`."""
        own = self.starts[start].pretraining or {}
        parts = (self.config, self.sets[data].config, self.pretraining, self.detectors[detector])
        parts = (*parts, own)
        return {key: value for part in parts for key, value in part.items()}["schedule.iterations"]

    def tuning_cells(self, data: str, detector: str, start: str) -> list[Cell]:
        """One start with every recipe."""
        tuning = self.tuning
        return [
            Cell(
                data, detector, start, tuning.percent, self.steps(data, tuning.iterations),
                tuple(recipe.items()), tuning.seed, tuning.split,
            )
            for recipe in tuning.recipes_for(detector)
        ]  # fmt: skip

    def all_tuning_cells(self) -> Iterator[Cell]:
        """All starts that are tuned, with every recipe."""
        tuning = self.tuning
        for place in itertools.product(tuning.detectors, tuning.sets, tuning.starts):
            detector, data, start = place
            yield from self.tuning_cells(data, detector, start)

    def examples(self) -> Iterator[Cell]:
        """A cell of each set, detector and start of each block, with a recipe of the tuning: all
        configs there are, even before it is known which recipes are best."""
        for block in self.blocks.values():
            for place in itertools.product(block.sets, block.detectors, block.starts):
                recipe = tuple(self.tuning.recipes_for(place[1])[0].items())
                steps = self.steps(place[0], block.iterations[0])
                more = (block.percents[0], steps, recipe, block.seeds[0], block.split)
                yield Cell(*place, *more)

    def pretraining_of(self, cell: Cell) -> Pretraining | None:
        """What a cell starts from, besides the backbone."""
        start = self.starts[cell.start].init_of or cell.start
        if self.starts[start].pretraining is None:
            return None
        seed = cell.seed if self.pretraining_per_seed else None
        return Pretraining(cell.data, cell.detector, start, cell.split, seed)


def value_text(value: Any) -> str:
    """A value of a recipe, in names and tables."""
    return f"{value:g}" if isinstance(value, float) else str(value)
