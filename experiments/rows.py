"""The rows of a comparison: each start in each setting, over its seeds."""

from __future__ import annotations

from statistics import mean, median
from typing import NamedTuple

from experiments.paired import Gain, paired_gain
from experiments.results import Results, chosen_cells
from experiments.study import COMMON, OWN, Block, Cell, Study


def recipe_in_words(study: Study, choice: str) -> str:
    """An entry of `recipes` of a block, as tables and figures name it."""
    words = {OWN: "own recipe", COMMON: "same recipe"}
    return words.get(choice) or f"recipe of {study.starts[choice].title}"


class Setting(NamedTuple):
    """What the starts of a comparison have in common."""

    data: str
    detector: str
    percent: float
    length: float  # of the schedule, in `steps` of the set
    choice: str  # an entry of `recipes` of the block
    split: str


class Row(NamedTuple):
    """One start in one setting of a block, over its seeds."""

    setting: Setting
    start: str
    cells: dict[int, Cell]  # the runs that have results, by seed
    scores: dict[int, float]  # AP of each seed, in percent
    gain: Gain | None  # over the block's first start; None for that start itself

    @property
    def iterations(self) -> int:
        """Steps of fine-tuning; more than in the setting if the start makes up for a
        pre-training."""
        return next(iter(self.cells.values())).iterations

    @property
    def lengths_apart(self) -> Setting:
        """The setting of all schedules of the row's start, whatever their length."""
        return self.setting._replace(length=0)


def rows_of(study: Study, results: Results, block: Block) -> list[Row]:
    """The rows of a block that have results; gains over the seeds that both starts have."""
    groups: dict[tuple[Setting, str], dict[int, Cell]] = {}
    for choice, length, cell in chosen_cells(study, results, block):
        if results.get(cell) is not None:
            place = (cell.data, cell.detector, cell.percent, length)
            setting = Setting(*place, choice, cell.split)
            groups.setdefault((setting, cell.start), {})[cell.seed] = cell
    scores = {
        key: {seed: results.final_ap(cell, block.metric) for seed, cell in cells.items()}
        for key, cells in groups.items()
    }
    rows = []
    for (setting, start), cells in groups.items():
        mine, gain = scores[setting, start], None
        baseline = scores.get((setting, block.starts[0]), {})
        common = sorted(mine.keys() & baseline.keys())
        if start != block.starts[0] and common:
            gain = paired_gain([baseline[seed] for seed in common], [mine[s] for s in common])
        rows.append(Row(setting, start, cells, mine, gain))
    return rows


class MeanRow(NamedTuple):
    """The gain of a start in the mean over the sets of a block."""

    setting: Setting  # without a set
    start: str
    gain: Gain  # of the mean of each seed


def mean_rows(block: Block, rows: list[Row]) -> list[MeanRow]:
    """The means over the sets of a block, where all of them have all seeds."""
    groups: dict[tuple[Setting, str], list[tuple[Row, Row]]] = {}
    baselines = {row.setting: row for row in rows if row.start == block.starts[0]}
    for row in rows:
        if row.gain is not None and row.gain.pairs == len(block.seeds):
            key = row.setting._replace(data=""), row.start
            groups.setdefault(key, []).append((baselines[row.setting], row))
    found = []
    for (setting, start), pairs in groups.items():
        if len(pairs) == len(block.sets) > 1:
            means = [
                [mean(row.scores[seed] for row in of_start) for seed in block.seeds]
                for of_start in zip(*pairs, strict=True)
            ]
            found.append(MeanRow(setting, start, paired_gain(*means)))
    return found


def seconds_of(study: Study, results: Results, row: Row) -> list[float] | None:
    """Time of the pre-training, if there is one, and of fine-tuning: by the measured times of a
    step or, where there are none, the wall times of the runs (medians of the seeds); None if a
    pre-training has no result."""
    cell = next(iter(row.cells.values()))
    times, pretraining = results.step_times(cell.data, cell.detector), study.pretraining_of(cell)
    if times is not None:
        own = row.iterations * times["finetuning"]
        if pretraining is None:
            return [own]
        steps = study.pretraining_steps(cell.data, cell.detector, pretraining.start)
        return [steps * times["pretraining"], own]
    pretrainings = [p for cell in row.cells.values() if (p := study.pretraining_of(cell))]
    made = [results.get(pretraining) for pretraining in pretrainings]
    if None in made:
        return None
    parts = (made, [results.get(cell) for cell in row.cells.values()])
    return [median(result["wall_seconds"] for result in part) for part in parts if part]
