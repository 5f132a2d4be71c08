"""The rows of a comparison: each start in each setting, over its seeds."""

from __future__ import annotations

from statistics import median
from typing import NamedTuple

from experiments.paired import Gain, paired_gain
from experiments.results import Recipe, Results, block_cells
from experiments.study import Block, Cell, Study


class Row(NamedTuple):
    """One start in one setting of a block, over its seeds."""

    data: str
    detector: str
    percent: float
    iterations: int
    start: str
    recipe: Recipe
    scores: dict[int, float]  # AP of each seed, in percent
    gain: Gain | None  # over the block's first start; None for that start itself


def rows_of(study: Study, results: Results, block: Block) -> list[Row]:
    """The rows of a block that have results; gains over the seeds that both starts have."""
    groups: dict[tuple, dict[int, float]] = {}
    for cell in block_cells(study, results, block):
        score = results.final_ap(cell)
        if score is not None:
            setting = (cell.data, cell.detector, cell.percent, cell.iterations)
            groups.setdefault((*setting, cell.start, cell.recipe), {})[cell.seed] = score
    baselines = {key[:4]: scores for key, scores in groups.items() if key[4] == block.starts[0]}
    rows = []
    for key, scores in groups.items():
        gain = None
        common = sorted(scores.keys() & baselines.get(key[:4], {}).keys())
        if key[4] != block.starts[0] and common:
            gain = paired_gain([baselines[key[:4]][s] for s in common], [scores[s] for s in common])
        rows.append(Row(*key, scores, gain))
    return rows


def seconds_of(study: Study, results: Results, row: Row) -> list[float] | None:
    """Wall time of the pre-training, if there is one, and of fine-tuning (median of the seeds);
    None if the pre-training has no result."""
    pretraining = study.pretraining_of_start(row.data, row.detector, row.start)
    if pretraining is not None and results.get(pretraining) is None:
        return None
    cells = [Cell(row.data, row.detector, row.start, *row[2:4], row.recipe, s) for s in row.scores]
    before = [] if pretraining is None else [results.get(pretraining)["wall_seconds"]]
    return [*before, median(results.get(cell)["wall_seconds"] for cell in cells)]
