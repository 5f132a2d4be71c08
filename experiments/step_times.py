"""How long a step of each stage takes: what the study counts time by.

    python -m experiments.step_times experiments/fair.yaml --data DIR

Wall times of the runs themselves say little, as several run at a time. Here the stages of each set
and detector run for a few steps in turns, on a machine that should do nothing else; the medians go
to `step_times.json` in the folder of the results.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import yaml
from tqdm import tqdm

from data.json_files import read_json, write_json_atomic
from experiments.configs import Place, Run, config_of
from experiments.gains import prepare
from experiments.results import STEP_TIMES, Results
from experiments.runs import command, described
from experiments.study import Cell, Pretraining, Study

STEPS = 20
LOG_EVERY = 5  # the first steps, which include the start of everything, do not count


def main(arguments: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("study", metavar="FILE", help="the study's YAML")
    add("--data", required=True, metavar="DIR", help="folder of the data sets")
    add("--work", default="runs/step_times", metavar="DIR")
    add("--start", default="aligndet", metavar="NAME", help="whose pre-training is timed")
    add("--detectors", nargs="+", metavar="NAME", help="only these; the others keep their times")
    add("--rounds", type=int, default=2)
    options = parser.parse_args(arguments)
    study = Study.read(options.study)
    place = Place(Path(options.data).resolve(), Path(options.work).resolve())
    file = Results(study.results).path / STEP_TIMES
    seconds: dict[str, dict[str, dict[str, float]]] = {}
    if options.detectors and file.exists():
        seconds = read_json(file)["seconds"]
    detectors = options.detectors or list(study.detectors)
    bar = tqdm([(data, detector) for data in study.sets for detector in detectors])
    for data, detector in bar:
        bar.set_postfix_str(f"{data} {detector}")
        found = times(study, place, data, detector, options.start, options.rounds)
        seconds.setdefault(data, {})[detector] = found
    write_json_atomic({"device": described(place), "seconds": seconds}, file)
    return 0


def times(
    study: Study, place: Place, data: str, detector: str, start: str, rounds: int
) -> dict[str, float]:
    """Median seconds of a step of `pretraining` and of `finetuning`."""
    recipe = tuple(study.tuning.recipes_for(detector)[0].items())
    runs: dict[str, Run] = {
        "pretraining": Pretraining(data, detector, start, seed=0),
        "finetuning": Cell(data, detector, study.tuning.starts[0], 100, STEPS, recipe, 0),
    }
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            seconds[name] += steps_of(study, place, run)
    return {name: statistics.median(values) for name, values in seconds.items()}


def steps_of(study: Study, place: Place, run: Run) -> list[float]:
    """Seconds per step of a short run, one for each line that it logs but for the first."""
    prepare(study, place, run)
    folder = place.folder(run)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    config = folder / "study.yaml"
    content = config_of(study, place, run)
    content["schedule"] |= {"iterations": STEPS, "warmup_iterations": 1}
    content["loop"] = {"log_every": LOG_EVERY}
    if isinstance(run, Cell):
        del content["evaluation"]["every"]  # the one at the end is not counted
    config.write_text(yaml.safe_dump(content), "utf-8")
    line = command(study, place, run, config)
    subprocess.run(line, env=place.environment(), check=True, stdout=subprocess.DEVNULL)
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rates = [json.loads(text)["images_per_second"] for text in lines]
    return [content["data"]["batch_size"] / rate for rate in rates[1:]]


if __name__ == "__main__":
    sys.exit(main())
