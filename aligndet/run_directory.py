"""The files of a run: config.yaml, metrics.jsonl, last.pt, weights.pt, results.json, ..."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aligndet import checkpoint, dist
from aligndet.config import Config, differences, dump_yaml, plain
from data.json_files import open_atomic, write_json_atomic

# Keys that may change when a run is resumed, because the result does not depend on them.
FREE_TO_CHANGE = (
    *("output_dir", "device", "data.workers", "data.proposal_cache"),
    *("loop.", "evaluation.", "data.val.", "image.probe_"),
)


class RunDirectory:
    """Paths of one run, and what is written to them; only rank 0 writes."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.last = self.path / "last.pt"
        self.weights = self.path / "weights.pt"
        self.metrics = self.path / "metrics.jsonl"
        self.results = self.path / "results.json"
        self.evaluation = self.path / "evaluation.json"  # of --eval-only in the folder of a run
        self.manifest = self.path / "manifest.json"

    @property
    def is_new(self) -> bool:
        """Whether the folder holds no run yet."""
        return not (self.path / "config.yaml").exists()

    def open(self, config: Config, resume: str) -> dict[str, Any] | None:
        """Create the directory, write config.yaml and find what to resume.

        Args:
            config: of this run.
            resume: `auto` resumes from last.pt if there is one, `none` starts over, a path resumes
                from that file.

        Returns:
            The checkpoint to resume from, or None.

        Raises:
            ValueError: the checkpoint is unreadable or was made with other settings.
        """
        path = self.last if resume == "auto" else Path(resume)
        state = None
        if resume != "none" and (resume != "auto" or path.exists()):
            state = checkpoint.load(path, "--resume")
            if "optimizer" not in state:
                raise ValueError(f"{path}: holds weights only; give --resume a run's last.pt")
            _check_same_run(path, state, plain(config))
        if dist.is_main():
            self.path.mkdir(parents=True, exist_ok=True)
            if resume == "none":  # else a kill before the first save brings the old run back
                self.last.unlink(missing_ok=True)
            for leftover in self.path.glob(".*.tmp"):  # of a run killed while writing
                leftover.unlink()
            (self.path / "config.yaml").write_text(dump_yaml(config), encoding="utf-8")
            self._keep_metrics_before(state["step"] if state else 0)
        return state

    def _keep_metrics_before(self, step: int) -> None:
        """Drop lines of steps that will be repeated, and a last line cut off by a kill."""
        if not self.metrics.exists():
            return
        kept = []
        for line in self.metrics.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError):  # the line cut off
                if json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
        with open_atomic(self.metrics) as file:
            file.writelines(kept)

    def log(self, values: Mapping[str, Any]) -> None:
        """Append one line to metrics.jsonl; numbers that are not finite become null."""
        if not dist.is_main():
            return
        clean = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in values.items()
        }
        with open(self.metrics, "a", encoding="utf-8") as file:
            file.write(json.dumps(clean) + "\n")

    def report(self, scores: Mapping[str, float | None], path: Path) -> None:
        """Print the final scores and write them to `path`."""
        if dist.is_main():
            write_json_atomic(dict(scores), path)
            words = (f"{k} {'-' if v is None else format(v, '.2f')}" for k, v in scores.items())
            print("  ".join(words))


def _check_same_run(path: Path, state: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    # The order of the images and the length of an epoch depend on the number of processes.
    if state["processes"] != dist.world_size():
        raise ValueError(
            f"{path}: was made by {state['processes']} process(es), not {dist.world_size()}; start "
            f"{state['processes']}, choose another output_dir, or start over with --resume none"
        )
    changed = [d for d in differences(state["config"], config) if not d.startswith(FREE_TO_CHANGE)]
    if changed:
        raise ValueError(
            f"{path}: was made with other settings ({'; '.join(changed)}); restore them, choose "
            "another output_dir, or start over with --resume none"
        )
