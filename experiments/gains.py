"""Run a study of what AlignDet brings.

    python -m experiments.gains experiments/fair.yaml --data DIR         # makes every missing run
    python -m experiments.gains experiments/fair.yaml --data DIR --list  # lists all, made or not
    python -m experiments.report experiments/fair.yaml                   # docs/results.md

The same command resumes a stopped run from its last checkpoint. Each finished run writes one JSON
into the study's folder of results; the report needs nothing else.
"""

from __future__ import annotations

import argparse
import sys
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path

from tqdm import tqdm

from experiments.configs import Place, Run, has_weights
from experiments.prepare import make_labels, make_proposals
from experiments.results import Results, all_cells
from experiments.runs import FailedRun, check, perform
from experiments.study import Cell, Pretraining, Study


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status: 1 if a run failed."""
    parser = argparse.ArgumentParser(description="Run the study of what AlignDet brings.")
    add = parser.add_argument
    add("study", metavar="FILE", help="the study's YAML, such as experiments/fair.yaml")
    add("--data", required=True, metavar="DIR", help="folder of the data sets")
    add("--work", default="runs/study", metavar="DIR", help="folder of the runs (runs/study)")
    add("--only", nargs="+", default=[""], metavar="TEXT", help="runs with TEXT in their name")
    add("--jobs", type=int, default=2, help="runs at the same time (2)")
    add("--threads", type=int, default=1, help="threads per run (1)")
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--list", action="store_true", help="list the runs, but make none")
    options = parser.parse_args(arguments)
    root, work = Path(options.data).resolve(), Path(options.work).resolve()
    place = Place(root, work, options.threads, options.device)
    try:
        study = Study.read(options.study)
        results = Results(study.results)
        check(study, place, wanted(study, results), results)
        if options.list:
            runs = wanted(study, results, options.only)
            todo = missing(study, place, results, runs)
            for run in runs:
                print("missing" if run in todo else "made   ", run.name)
            return 0
        failed = run_all(study, place, results, options.only, options.jobs)
    except ValueError as error:  # a DataError, or a wrong key in a config
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 1 if failed else 0


def wanted(study: Study, results: Results, only: list[str] | tuple[str, ...] = ("",)) -> list[Run]:
    """The runs that can be named now, in the order of the study, each pre-training before the first
    cell that needs it. Cells whose recipe is not chosen yet appear when their tuning is done.

    Args:
        only: cells with one of these in their name, and their pre-trainings.
    """
    runs: list[Run] = []
    for cell in all_cells(study, results):
        if any(text in cell.name for text in only):
            pretraining = study.pretraining_of(cell)
            runs += [cell] if pretraining is None else [pretraining, cell]
    return list(dict.fromkeys(runs))


def run_all(study: Study, place: Place, results: Results, only: list[str], jobs: int) -> int:
    """Make what is missing, `jobs` runs at a time; returns how many failed."""
    failed: set[Run] = set()
    running: dict[Future[None], Run] = {}
    with ThreadPoolExecutor(jobs) as pool, tqdm(unit="run") as bar:
        while True:
            runs = wanted(study, results, only)
            todo = missing(study, place, results, runs)
            bar.total, bar.n = len(runs), len(runs) - len(todo)
            bar.refresh()
            started = (*running.values(), *failed)
            ready = [r for r in todo if r not in started and needs(study, r) not in todo]
            for run in ready[: jobs - len(running)]:
                prepare(study, place, run)
                running[pool.submit(perform, study, place, run, results)] = run
            if not running:
                return len(failed)
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                run = running.pop(future)
                try:
                    future.result()
                except FailedRun as error:
                    failed.add(run)
                    tqdm.write(f"error: {error}", file=sys.stderr)


def missing(study: Study, place: Place, results: Results, runs: list[Run]) -> list[Run]:
    """The `runs` that have to be made, in the same order.

    Results are committed, weights are not: a pre-training whose result came with the repository is
    made again if a missing cell starts from it. So is one whose weights are of other settings.
    """
    without_result = [run for run in runs if results.get(run) is None]
    needed = {needs(study, run) for run in without_result}
    return [
        run
        for run in runs
        if run in without_result or (run in needed and not has_weights(study, place, run))
    ]


def needs(study: Study, run: Run) -> Pretraining | None:
    """The pre-training that a run starts from, if any."""
    return study.pretraining_of(run) if isinstance(run, Cell) else None


def prepare(study: Study, place: Place, run: Run) -> None:
    """Make the files that a run reads; done here so that no two runs make the same one."""
    data, start = study.sets[run.data], study.starts[run.start]
    if isinstance(run, Cell):
        make_labels(place.root, place.work, data, run.percent, run.seed, run.split)
    elif start.labelled:
        make_labels(place.root, place.work, data, 100, run.seed or 0, run.split)
    else:
        make_proposals(place.root, place.work, data, start, run.split)


if __name__ == "__main__":
    sys.exit(main())
