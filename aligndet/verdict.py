"""What runs say together: the AP of each start, their difference, and how sure it is.

Runs that differ in nothing but their seed, or the part of the labels that they learn from, belong
together. Two starts are compared run by run, each with the one of the same seed and labels.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import NamedTuple

from aligndet.run_files import RunFiles

# 97.5 % quantiles of Student's t for 1, 2, ... degrees of freedom; later 1.96 and a little more
T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
LONG = 40  # letters of a name
SHARED = "\N{HORIZONTAL ELLIPSIS}"


class Repeat(NamedTuple):
    """What tells the runs of a group apart."""

    seed: int
    fold: int  # of a low-data protocol; -1: not of one
    copy: int  # 0, 1, ... of runs that are equal in both

    def __str__(self) -> str:
        fold = f", fold {self.fold}" if self.fold >= 0 else ""
        return f"{self.seed}{fold}" + (f", run {self.copy + 1}" if self.copy else "")


@dataclass(frozen=True)
class Group:
    """Runs with the same settings and start."""

    title: str
    runs: dict[Repeat, RunFiles]

    @classmethod
    def of(cls, title: str, runs: Sequence[RunFiles]) -> Group:
        """All of `runs`, which nothing but a `Repeat` tells apart."""
        found: dict[Repeat, RunFiles] = {}
        for run in runs:
            repeat = Repeat(int(run.config.get("seed", 0)), run.fold, 0)
            while repeat in found:
                repeat = repeat._replace(copy=repeat.copy + 1)
            found[repeat] = run
        return cls(title, found)

    def scores(self, key: str) -> dict[tuple[int, int], float]:
        """The final score by seed and fold, the mean of runs that are equal in both; without runs
        that have none."""
        found: dict[tuple[int, int], list[float]] = {}
        for repeat, run in self.runs.items():
            if run.results.get(key) is not None:
                found.setdefault((repeat.seed, repeat.fold), []).append(run.results[key])
        return {place: mean(values) for place, values in found.items()}

    @property
    def first(self) -> RunFiles:
        """The run that stands for all where one is enough."""
        return next(iter(self.runs.values()))


@dataclass(frozen=True)
class Difference:
    """Between two groups, over the runs that both have."""

    base: float  # mean of the score
    other: float
    pairs: int  # of a seed and a fold
    interval: tuple[float, float] | None  # 95 %, of other - base; None with one run

    @property
    def mean(self) -> float:
        """How much more the other group has."""
        return self.other - self.base


def groups_of(runs: Sequence[RunFiles]) -> list[Group]:
    """The groups of some runs, in the order of their first ones, the backbone alone before all."""
    found: dict[str, list[RunFiles]] = {}
    for run in runs:
        found.setdefault(run.repeated(), []).append(run)
    starts = [of_group[0].start for of_group in found.values()]
    folders = told_apart([of_group[0].path for of_group in found.values()])
    groups = []
    for of_group, folder in zip(found.values(), folders, strict=True):
        title = of_group[0].start
        if starts.count(title) > 1:  # they differ in settings
            title = folder
        groups.append(Group.of(title, of_group))
    return sorted(groups, key=lambda group: group.title != "backbone only")


def told_apart(paths: Sequence[Path]) -> list[str]:
    """Short names of different paths: the last parts that tell them apart, without the end that
    they share: of a/run and b/run these are a and b."""
    parts = [path.resolve().parts for path in paths]
    length = 1
    while len({of_path[-length:] for of_path in parts}) < len(set(parts)):
        length += 1
    tails = [of_path[-length:] for of_path in parts]
    while len(tails) > 1 and min(map(len, tails)) > 1 and len({tail[-1] for tail in tails}) == 1:
        tails = [tail[:-1] for tail in tails]
    names = ["/".join(tail) for tail in tails]
    return without_shared(names) if max(map(len, names), default=0) > LONG else names


def without_shared(names: Sequence[str]) -> list[str]:
    """Long names without what all of them have in the same place, between _ and /: of
    a/lr_1_seed0 and b/lr_1_seed1 these are a/..._seed0 and b/..._seed1. Of names with different
    numbers of parts, nothing is left out."""
    parts = [re.split(r"(?<=[_/])", name) for name in names]
    if len(names) < 2 or len({len(of_name) for of_name in parts}) > 1:
        return list(names)
    differs = [len(set(column)) > 1 for column in zip(*parts, strict=True)]
    short = []
    for of_name in parts:
        kept = ""
        for part, own in zip(of_name, differs, strict=True):
            if own:
                kept += part
            elif not kept.endswith(SHARED):
                kept += SHARED
        short.append(kept.removesuffix(SHARED))
    return short


def difference(base: Group, other: Group, key: str = "AP") -> Difference | None:
    """Of the seeds and folds that both have; None if there is none."""
    of_base, of_other = base.scores(key), other.scores(key)
    pairs = [(of_base[place], of_other[place]) for place in of_base if place in of_other]
    if not pairs:
        return None
    means = [mean(column) for column in zip(*pairs, strict=True)]
    return Difference(*means, len(pairs), interval([b - a for a, b in pairs]))


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """The 95 % confidence interval of a mean, by Student's t; None of one value."""
    if len(values) < 2:
        return None
    degrees = len(values) - 1
    t = T[degrees - 1] if degrees <= len(T) else 1.96 + 2.5 / degrees
    half = t * stdev(values) / math.sqrt(len(values))
    return mean(values) - half, mean(values) + half


def sentence(base: Group, other: Group, key: str = "AP") -> str:
    """The verdict, in words."""
    found = difference(base, other, key)
    if found is None:
        return f"{other.title} and {base.title} share no seed with a final {key}."
    more = "more" if found.mean >= 0 else "less"
    text = (
        f"{other.title}: {key} {found.other:.1f}, {abs(found.mean):.1f} {more} than "
        f"{base.title} ({found.base:.1f})."
    )
    if found.interval is None:
        return f"{text} One seed, no interval: another seed may say otherwise."
    low, high = found.interval
    sure = "above 0" if low > 0 else "below 0" if high < 0 else "around 0, so it may be chance"
    pairs = f"Mean of {found.pairs} pairs of runs"
    return f"{text} {pairs}, 95 % interval {low:+.1f} to {high:+.1f}: {sure}."
