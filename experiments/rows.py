"""The rows of a comparison: each start in each setting, over its seeds."""

from __future__ import annotations

from statistics import median
from typing import NamedTuple

from experiments.paired import Gain, paired_gain
from experiments.results import Recipe, Results, chosen_cells
from experiments.study import COMMON, OWN, Block, Cell, Study

RECIPES = {OWN: "own recipe", COMMON: "same recipe"}  # in words


class Setting(NamedTuple):
    """What the starts of a comparison have in common."""

    data: str
    detector: str
    percent: float
    iterations: int
    choice: str  # an entry of `recipes` of the block
    split: str


class Row(NamedTuple):
    """One start in one setting of a block, over its seeds."""

    setting: Setting
    start: str
    recipe: Recipe
    scores: dict[int, float]  # AP of each seed, in percent
    gain: Gain | None  # over the block's first start; None for that start itself

    def cells(self) -> list[Cell]:
        """The runs of the row, one per seed."""
        data, detector, percent, iterations, _, split = self.setting
        place = (data, detector, self.start, percent, iterations, self.recipe)
        return [Cell(*place, seed, split) for seed in self.scores]

    @property
    def lengths_apart(self) -> Setting:
        """The setting of all schedules of the row's start, whatever their length."""
        return self.setting._replace(iterations=0)


def rows_of(study: Study, results: Results, block: Block) -> list[Row]:
    """The rows of a block that have results; gains over the seeds that both starts have."""
    groups: dict[tuple[Setting, str, Recipe], dict[int, float]] = {}
    for choice, cell in chosen_cells(study, results, block):
        score = results.final_ap(cell)
        if score is not None:
            place = (cell.data, cell.detector, cell.percent, cell.iterations)
            setting = Setting(*place, choice, cell.split)
            groups.setdefault((setting, cell.start, cell.recipe), {})[cell.seed] = score
    baselines = {key[0]: scores for key, scores in groups.items() if key[1] == block.starts[0]}
    rows = []
    for (setting, start, recipe), scores in groups.items():
        gain, baseline = None, baselines.get(setting, {})
        common = sorted(scores.keys() & baseline.keys())
        if start != block.starts[0] and common:
            gain = paired_gain([baseline[seed] for seed in common], [scores[s] for s in common])
        rows.append(Row(setting, start, recipe, scores, gain))
    return rows


def seconds_of(study: Study, results: Results, row: Row) -> list[float] | None:
    """Wall time of the pre-training, if there is one, and of fine-tuning (medians of the seeds);
    None if a pre-training has no result."""
    pretrainings = [p for cell in row.cells() if (p := study.pretraining_of(cell))]
    made = [results.get(pretraining) for pretraining in pretrainings]
    if None in made:
        return None
    parts = (made, [results.get(cell) for cell in row.cells()])
    return [median(result["wall_seconds"] for result in part) for part in parts if part]
