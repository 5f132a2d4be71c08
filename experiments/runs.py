"""One run of a study: its command, and the result that is kept.

The commands are those a user would type, `pretrain.py` and `finetune.py` with a config file; a
run that was killed resumes from its last checkpoint.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any

import torch
import yaml

from aligndet.config import differences
from data.errors import DataError
from data.json_files import read_json, write_json_atomic
from experiments.configs import Place, Run, comparable, config_of, resolved
from experiments.results import Results
from experiments.study import Cell, Pretraining, Study

KEPT_EVERY = 5.0  # seconds: so much of a run's time is lost if the study is killed


class FailedRun(Exception):
    """A run ended with an error, which is in its log."""


def command(study: Study, place: Place, run: Run, config: Path) -> list[str]:
    """The command line of a run."""
    if isinstance(run, Pretraining):
        start = study.starts[run.start]
        variant = ["--variant", json.dumps(start.variant)] if start.variant else []
        return [sys.executable, "-m", start.module, "--config", str(config), *variant]
    line = [sys.executable, "-m", "finetune", "--config", str(config)]
    pretraining = study.pretraining_of(run)
    if pretraining is not None:
        line += ["--init", str(place.weights(pretraining))]
    return line


def perform(study: Study, place: Place, run: Run, results: Results) -> None:
    """Make a run and keep its result.

    Raises:
        FailedRun: the command failed.
    """
    folder = place.folder(run)
    folder.mkdir(parents=True, exist_ok=True)
    config, log = folder / "study.yaml", folder / "log.txt"
    config.write_text(yaml.safe_dump(config_of(study, place, run), sort_keys=False), "utf-8")
    line = command(study, place, run, config)
    attempts = Attempts(folder / "attempts.json")
    with open(log, "a", encoding="utf-8") as file:
        status = attempts.run(line, file, place.environment())
    if status:
        raise FailedRun(f"{run.name}: exit status {status}; the reason is in {log}")
    results.save(run, summary(study, place, run, results, attempts))
    for name in ("last.pt", "last.pt.1", attempts.path.name):
        (folder / name).unlink(missing_ok=True)
    if isinstance(run, Cell):  # tens of megabytes that no other run needs
        place.weights(run).unlink(missing_ok=True)


class Attempts:
    """The time and the commits of a run, of earlier attempts that were stopped too.

    Args:
        path: the file that keeps them until the run has ended.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        earlier = read_json(path) if path.exists() else {"seconds": 0.0, "commits": []}
        self.seconds: float = earlier["seconds"]
        self.commits: list[str] = earlier["commits"]

    def run(self, line: list[str], log: IO[str], environment: Mapping[str, str]) -> int:
        """Run a command line; returns its exit status."""
        before, start = self.seconds, time.perf_counter()
        self.commits = list(dict.fromkeys([*self.commits, commit()]))
        with subprocess.Popen(
            line, stdout=log, stderr=subprocess.STDOUT, env=environment
        ) as process:
            while process.returncode is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(KEPT_EVERY)
                self.seconds = before + time.perf_counter() - start
                kept = {"seconds": round(self.seconds, 1), "commits": self.commits}
                write_json_atomic(kept, self.path)
        return process.returncode


def summary(
    study: Study, place: Place, run: Run, results: Results, attempts: Attempts
) -> dict[str, Any]:
    """The result of a run: what its JSON holds."""
    folder = place.folder(run)
    text = (folder / "metrics.jsonl").read_text(encoding="utf-8")
    lines = [json.loads(line) for line in text.splitlines()]
    content = {
        "name": run.name,
        "commit": ", ".join(attempts.commits),
        "torch": torch.__version__,
        "device": described(place),
        "wall_seconds": round(attempts.seconds, 1),
        "config": resolved(study, place, run),
    }
    if isinstance(run, Pretraining):
        return content | {"curve": lines}
    final = read_json(folder / "results.json")
    curve = [{"step": line["step"], "AP": line["AP"]} for line in lines if "AP" in line]
    return content | {
        "labelled": labelled(config_of(study, place, run)),
        "init": init_of(study, place, run, results),
        "curve": [*curve, {"step": run.iterations, "AP": final["AP"]}],
        "final": final,
    }


def labelled(config: Mapping[str, Any]) -> dict[str, int]:
    """How many photographs with objects, and how many objects, a fine-tuning learns from."""
    annotations = read_json(Path(config["data"]["train"]["annotations"]))["annotations"]
    photographs = {annotation["image_id"] for annotation in annotations}
    return {"photographs": len(photographs), "objects": len(annotations)}


def described(place: Place) -> str:
    """The device, as the report names it."""
    if place.device == "cuda":
        return torch.cuda.get_device_name()
    return f"CPU, {place.threads} thread{'s' if place.threads > 1 else ''}"


def commit() -> str:
    """The commit of the code that runs; `+` means that files have changed since, results apart."""
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    status = ["git", "status", "--porcelain", "--untracked-files=no"]
    status += ["--", ".", ":(exclude)experiments/results*"]
    changed = subprocess.run(status, capture_output=True, text=True, check=True).stdout
    return head.stdout.strip() + ("+" if changed else "")


def init_of(study: Study, place: Place, cell: Cell, results: Results) -> dict[str, str] | None:
    """The pre-training of a cell, and a digest of its config as its result has it: `check` compares
    that with the study's."""
    pretraining = study.pretraining_of(cell)
    if pretraining is None:
        return None
    made = results.get(pretraining)
    config = made["config"] if made else resolved(study, place, pretraining)
    config = comparable(study, pretraining, config)
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()
    return {"name": pretraining.name, "config_sha256": digest}


def check(study: Study, place: Place, runs: Iterable[Run], results: Results) -> None:
    """Find errors before the first run, not hours later.

    Raises:
        ValueError: names a wrong config key.
        DataError: a result was made with another version of the study; names its file and the keys
            in which its config differs.
    """
    for cell in study.examples():
        resolved(study, place, cell)
        if pretraining := study.pretraining_of(cell):
            resolved(study, place, pretraining)
    for run in runs:
        config = comparable(study, run, resolved(study, place, run))
        result = results.get(run)
        if result is None:
            continue
        changed = differences(comparable(study, run, result["config"]), config)
        if isinstance(run, Cell) and result["init"] != init_of(study, place, run, results):
            changed.append("its pre-training")
        if changed:
            raise DataError(
                f"{results.file(run)}: was made with another config ({'; '.join(changed)}); "
                "restore the study, or delete the file and those of the runs that started from it"
            )
