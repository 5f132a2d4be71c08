"""The files of a run: config.yaml, metrics.jsonl, last.pt, weights.pt, results.json, ..."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from aligndet import checkpoint, dist, last_checkpoint
from aligndet.config import Config, differences, dump_yaml, merged, plain
from aligndet.evaluate import Evaluation, class_table
from aligndet.event_files import EventFiles, check_tensorboard
from aligndet.former_run import put_aside
from aligndet.run_lock import RunLock, machines_without
from aligndet.skipped_images import SkippedImages
from data.atomic_files import cannot_write, open_atomic, remove_leftovers
from data.counting import count
from data.digest import Source, digest_of
from data.errors import DataError
from data.images import BadFile
from data.json_files import write_json_atomic

# Keys that may change when a run is resumed, because the result does not depend on them.
FREE_TO_CHANGE = (
    *("output_dir", "device", "compile", "data.workers", "data.proposal_cache"),
    *("data.on_bad_image", "data.max_pixels"),
    *("loop.", "evaluation.", "data.val.", "image.probe_"),
)
# Data may move: for these keys, what was read is compared (the `inputs`), not the path.
PATHS = ("data.train.", "model.backbone_weights")


class RunDirectory:
    """Paths of one run, and what is written to them; only rank 0 writes."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.last = self.path / last_checkpoint.LAST
        self.previous = self.path / last_checkpoint.PREVIOUS  # the one before it
        self.resumed = self.last  # the file that `find` read
        self.weights = self.path / "weights.pt"
        self.best = self.path / "weights_best.pt"  # of the evaluation with the highest AP
        self.metrics = self.path / "metrics.jsonl"
        self.results = self.path / "results.json"
        self.manifest = self.path / "manifest.json"
        self.skipped = SkippedImages(self.path / "skipped_images.jsonl")
        self.inputs: dict[str, str | None] = {}  # digests of what the run was started from
        self._lock: RunLock | None = None
        self._events: EventFiles | None = None
        self._resume = "auto"

    @property
    def is_new(self) -> bool:
        """Whether the folder holds no run yet."""
        return not (self.path / "config.yaml").exists()

    def find(
        self, config: Config, resume: str, inputs: Mapping[str, str | None] | None = None
    ) -> dict[str, Any] | None:
        """The checkpoint to resume from, or None; nothing is written yet.

        Args:
            config: of this run.
            resume: `auto` resumes from last.pt if there is one, `none` starts over, a path resumes
                from that file, or from the last.pt of that directory. A last.pt that is damaged or
                missing is replaced by last.pt.1, the one before it.
            inputs: digests of what the start reads, by the key or option that names it; None: a
                file that is gone, which resuming does not need. They are saved in last.pt.

        Raises:
            ValueError: the checkpoint is unreadable or was made with other settings or inputs; or
                a file that is wanted cannot be written.
        """
        check_tensorboard(config.loop.tensorboard)
        self.inputs, self._resume = dict(inputs or {}), resume
        found = last_checkpoint.find_checkpoint(resume, self.path)
        if found is None:
            return None
        path, state = found
        self.resumed = path
        _check_same_run(path, state, plain(config), self.inputs)
        known = {key: value for key, value in self.inputs.items() if value is not None}
        self.inputs = state.get("inputs", {}) | known
        return state

    def open(
        self, config: Config, state: Mapping[str, Any] | None, bad: Sequence[BadFile] = ()
    ) -> None:
        """Create the directory, or continue in it, and write config.yaml; every rank calls it.

        Args:
            config: of this run.
            state: what `find` returned; None starts over.
            bad: images that are known to be skipped.

        Raises:
            DataError: another run is writing to it, or it is another folder on another machine and
                the checkpoint is there.
            StorageError: it cannot be written.
        """
        if dist.is_main():
            self._open(config, state, bad)
        apart = machines_without(self.path, self._lock)
        if apart:
            self._report_apart(" and ".join(apart), starts_anew=state is None)

    def _report_apart(self, machines: str, starts_anew: bool) -> None:
        """Say that machines have another folder; an error if that has what `auto` looks for."""
        has_last = not dist.is_main() and self.last.exists()
        if starts_anew and self._resume == "auto" and any(dist.gather_objects(has_last)):
            raise DataError(
                f"{self.path}: is another folder on {machines}, and only there is a last.pt; put "
                "output_dir on storage that all machines share, copy last.pt to each of them, or "
                "start over with --resume none"
            )
        if dist.is_main():
            print(
                f"{self.path}: is another folder on {machines}; to resume, each machine will need "
                "its last.pt, so better put output_dir on storage that all of them share"
            )

    def _open(
        self, config: Config, state: Mapping[str, Any] | None, bad: Sequence[BadFile]
    ) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = RunLock(self.path)
            if state is None:
                for old in (self.last, self.previous):  # a kill would bring the old run back
                    old.unlink(missing_ok=True)
                put_aside(self.path)
                self.best.unlink(missing_ok=True)
                self.skipped.remove()
            elif self.previous.exists() and self.previous.samefile(self.resumed):
                os.replace(self.previous, self.last)  # a damaged one is not kept as the one before
            remove_leftovers(self.path)  # of a run killed while writing
        except OSError as error:
            raise cannot_write(self.path, error) from None
        with open_atomic(self.path / "config.yaml") as file:
            file.write(dump_yaml(config))
        step = state["step"] if state else 0
        self._keep_metrics_before(step)
        if config.loop.tensorboard:
            self._events = EventFiles(self.path, step)
        self.skipped.note(bad)

    def _lines(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl, without one cut off by a kill."""
        lines = []
        if self.metrics.exists():
            for text in self.metrics.read_text(encoding="utf-8", errors="replace").splitlines():
                with contextlib.suppress(ValueError):  # the line cut off
                    line = json.loads(text)
                    if isinstance(line, dict) and isinstance(line.get("step"), int):
                        lines.append(line)
        return lines

    def _keep_metrics_before(self, step: int) -> None:
        """Drop lines of steps that will be repeated."""
        if not self.metrics.exists():
            return
        kept = [json.dumps(line) + "\n" for line in self._lines() if line["step"] <= step]
        with open_atomic(self.metrics) as file:
            file.writelines(kept)

    def was_evaluated(self, step: int) -> bool:
        """Whether metrics.jsonl has the evaluation after `step` steps; the same on all ranks."""
        found = any(line["step"] == step and "lr" not in line for line in self._lines())
        return dist.broadcast_object(found)

    def log(self, values: Mapping[str, Any]) -> None:
        """Append one line to metrics.jsonl; numbers that are not finite become null."""
        if not dist.is_main():
            return
        clean = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in values.items()
        }
        try:
            with open(self.metrics, "a", encoding="utf-8") as file:
                file.write(json.dumps(clean) + "\n")
            if self._events:
                self._events.write(clean)
        except OSError as error:
            raise cannot_write(self.metrics, error) from None

    def report(self, scores: Mapping[str, float | None], path: Path) -> None:
        """Print the final scores and write them to `path`."""
        say("result", scores)  # first: it is not lost where nothing can be written
        if dist.is_main():
            write_json_atomic(dict(scores), path)

    def report_evaluation(self, evaluation: Evaluation, name: str) -> None:
        """Print what a detector scored and write it: `results.json`, `per_class.json`,
        `detections.json` and, if masks are scored, `segm_per_class.json`.

        Args:
            evaluation: of the detector.
            name: `results` or, to leave a run's own files alone, another: `evaluation` writes
                `evaluation.json`, `evaluation_per_class.json`, `evaluation_detections.json`.
        """
        prefix = "" if name == "results" else f"{name}_"
        if dist.is_main():
            print(class_table(evaluation))
            if evaluation.remark:
                print(evaluation.remark)
        self.report(evaluation.scores, self.path / f"{name}.json")
        if dist.is_main():
            write_json_atomic(evaluation.per_class, self.path / f"{prefix}per_class.json")
            by_masks = self.path / f"{prefix}segm_per_class.json"
            if evaluation.segm_per_class:
                write_json_atomic(evaluation.segm_per_class, by_masks)
            else:
                by_masks.unlink(missing_ok=True)  # of an evaluation on other labels
            write_json_atomic(evaluation.detections, self.path / f"{prefix}detections.json")


def inputs_of(
    stage: str, config: Config, source: Source, **files: str | None
) -> dict[str, str | None]:
    """What must be the same when a run is resumed, wherever the files lie then.

    Args:
        stage: its name.
        config: of the run.
        source: its training images.
        files: more files that it starts from, by the name of their option.
    """
    files = {f"--{option}": path for option, path in files.items()}
    files["model.backbone_weights"] = config.model.backbone_weights
    digests = {key: checkpoint.digest(path) for key, path in files.items()}
    return {"stage": stage, "data.train": digest_of(source), **digests}


def say(when: str, scores: Mapping[str, float | None]) -> None:
    """Print a line of scores, above an open progress bar; only rank 0 does."""
    if dist.is_main():
        words = (f"{k} {'-' if v is None else format(v, '.2f')}" for k, v in scores.items())
        tqdm.write(f"{when}: " + "  ".join(words))


def _check_same_run(
    path: Path,
    state: Mapping[str, Any],
    config: Mapping[str, Any],
    inputs: Mapping[str, str | None],
) -> None:
    remedy = "choose another output_dir, or start over with --resume none"
    # The order of the images and the length of an epoch depend on the number of processes.
    if state["processes"] != dist.world_size():
        raise ValueError(
            f"{path}: was made by {count(state['processes'], 'process')}, not "
            f"{dist.world_size()}; start {state['processes']}, {remedy}"
        )
    free = FREE_TO_CHANGE + (PATHS if "inputs" in state else ())  # older files have paths only
    saved = merged(plain(Config(output_dir=".")), state["config"])  # it may lack newer keys
    changed = [d for d in differences(saved, config) if not d.startswith(free)]
    if changed:
        raise ValueError(
            f"{path}: was made with other settings ({'; '.join(changed)}); restore them, {remedy}"
        )
    for key, saved in state.get("inputs", {}).items():
        if inputs.get(key) not in (None, saved):
            how = "its names or content differ, not only its path"
            if key == "stage":
                how = f"{saved}, not {inputs[key]}"
            raise ValueError(f"{path}: was made with another {key} ({how}); restore it, {remedy}")
