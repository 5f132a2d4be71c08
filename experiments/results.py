"""The results of a study, one JSON per run, and the recipes that its tuning chose."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from data.json_files import read_json, write_json_atomic
from experiments.study import COMMON, OWN, Block, Cell, Pretraining, Study

Recipe = tuple[tuple[str, Any], ...]


class Results:
    """The folder of the JSON files; each is read once."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._read: dict[str, dict[str, Any]] = {}

    def file(self, run: Cell | Pretraining) -> Path:
        """The file of a run's result."""
        return self.path / f"{run.name}.json"

    def get(self, run: Cell | Pretraining) -> dict[str, Any] | None:
        """The result of a run, or None if it has not been made."""
        if run.name not in self._read:
            if not self.file(run).exists():
                return None
            self._read[run.name] = read_json(self.file(run))
        return self._read[run.name]

    def save(self, run: Cell | Pretraining, content: dict[str, Any]) -> None:
        """Keep the result of a run."""
        write_json_atomic(content, self.file(run))

    def final_ap(self, run: Cell) -> float | None:
        """AP of the last checkpoint in percent; 0 if there was no object to find."""
        result = self.get(run)
        return None if result is None else result["final"]["AP"] or 0.0


def tuned_recipe(
    study: Study, results: Results, detector: str, data: str, start: str
) -> Recipe | None:
    """The best recipe of a start; None as long as one of its tuning runs is missing.

    The first of equals wins.

    Args:
        start: COMMON for the recipe with the best mean over all starts that are tuned.
    """
    starts = study.tuning.starts if start == COMMON else (start,)
    grids = [study.tuning_cells(data, detector, each) for each in starts]
    scores = [[results.final_ap(cell) for cell in cells] for cells in zip(*grids, strict=True)]
    if not scores or None in itertools.chain(*scores):
        return None
    best = max(range(len(scores)), key=lambda i: (sum(scores[i]), -i))
    return grids[0][best].recipe


def chosen_cells(study: Study, results: Results, block: Block) -> list[tuple[str, Cell]]:
    """The cells of a block whose recipes are known already, each with the entry of
    `block.recipes` that chose its recipe; seeds vary fastest but for starts."""
    chosen = []
    for choice, detector, data, percent, iterations, seed, start in itertools.product(
        *(block.recipes, block.detectors, block.sets, block.percents, block.iterations),
        *(block.seeds, block.starts),
    ):
        place = study.recipe_place(data, start if choice == OWN else choice)
        recipe = tuned_recipe(study, results, detector, *place)
        if recipe is not None:
            steps = study.steps(data, iterations)
            cell = Cell(data, detector, start, percent, steps, recipe, seed, block.split)
            chosen.append((choice, cell))
    return chosen


def block_cells(study: Study, results: Results, block: Block) -> list[Cell]:
    """The cells of a block whose recipes are known already, without repetition."""
    return list(dict.fromkeys(cell for _, cell in chosen_cells(study, results, block)))


def all_cells(study: Study, results: Results) -> list[Cell]:
    """Every cell that can be named now, without repetition: the tuning first, then the blocks."""
    blocks = [block_cells(study, results, block) for block in study.blocks.values()]
    return list(dict.fromkeys([*study.all_tuning_cells(), *itertools.chain(*blocks)]))
