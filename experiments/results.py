"""The results of a study, one JSON per run, and the recipes that its tuning chose."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any, NamedTuple

from data.json_files import read_json, write_json_atomic
from experiments.study import COMMON, OWN, Block, Cell, Pretraining, Study

Recipe = tuple[tuple[str, Any], ...]
STEP_TIMES = "step_times.json"  # in the folder of the results


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

    def final_ap(self, run: Cell, metric: str = "AP") -> float | None:
        """AP of the last checkpoint in percent; 0 if there was no object to find."""
        result = self.get(run)
        return None if result is None else result["final"][metric] or 0.0

    def step_times(self, data: str, detector: str) -> dict[str, float] | None:
        """Seconds of a step of `pretraining` and of `finetuning`, or None if they have not been
        measured; see experiments/step_times.py."""
        path = self.path / STEP_TIMES
        seconds = read_json(path)["seconds"] if path.exists() else {}
        return seconds.get(data, {}).get(detector)


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


def fine_tuning_steps(
    study: Study, results: Results, data: str, detector: str, start: str, steps: int
) -> int | None:
    """A schedule of `steps`, longer if the start makes up for a pre-training; None as long as the
    time of a step has not been measured."""
    other = study.starts[start].longer_by
    if other is None:
        return steps
    times = results.step_times(data, detector)
    if times is None:
        return None
    seconds = study.pretraining_steps(data, detector, other) * times["pretraining"]
    return steps + round(seconds / times["finetuning"] / study.starts[start].shared_by)


class Chosen(NamedTuple):
    """A cell of a block, and what it is there for."""

    choice: str  # the entry of `block.recipes` that chose its recipe
    length: float  # the entry of `block.iterations`
    cell: Cell


def chosen_cells(study: Study, results: Results, block: Block) -> list[Chosen]:
    """The cells of a block whose recipes are known already; starts vary fastest, then seeds."""
    chosen = []
    for choice, detector, data, percent, iterations, seed, start in itertools.product(
        *(block.recipes, block.detectors, block.sets, block.percents, block.iterations),
        *(block.seeds, block.starts),
    ):
        place = study.recipe_place(data, start if choice == OWN else choice)
        recipe = tuned_recipe(study, results, detector, *place)
        steps = study.steps(data, iterations)
        taken = fine_tuning_steps(study, results, data, detector, start, steps)
        if recipe is not None and taken is not None:
            cell = Cell(data, detector, start, percent, taken, recipe, seed, block.split)
            chosen.append(Chosen(choice, iterations, cell))
    return chosen


def block_cells(study: Study, results: Results, block: Block) -> list[Cell]:
    """The cells of a block whose recipes are known already, without repetition."""
    return list(dict.fromkeys(chosen.cell for chosen in chosen_cells(study, results, block)))


def all_cells(study: Study, results: Results) -> list[Cell]:
    """Every cell that can be named now, without repetition: the tuning first, then the blocks."""
    blocks = [block_cells(study, results, block) for block in study.blocks.values()]
    return list(dict.fromkeys([*study.all_tuning_cells(), *itertools.chain(*blocks)]))
