"""The time of a step, as the study counts it."""

from __future__ import annotations

import json
import sys

import pytest
import yaml

from aligndet.config import build_config
from experiments import step_times
from experiments.results import Results
from experiments.study import Pretraining
from tests.helpers.study_files import write_study


def test_the_median_without_the_first_lines(tmp_path, monkeypatch):
    given = []

    def command(study, place, run, config):
        content = yaml.safe_load(config.read_text())
        every = content.get("evaluation", {}).get("every")
        given.append((type(run), content["schedule"]["iterations"], every))
        build_config(content)
        # 2 images per step; the first line has the start of everything in it.
        rates = (0.01, 4.0, 1.0, 2.0) if isinstance(run, Pretraining) else (0.01, 8.0, 8.0, 8.0)
        lines = [json.dumps({"step": n, "images_per_second": r}) for n, r in enumerate(rates)]
        (place.folder(run) / "metrics.jsonl").write_text("\n".join(lines))
        return [sys.executable, "-c", ""]

    monkeypatch.setattr(step_times, "command", command)
    monkeypatch.setattr(step_times, "prepare", lambda *arguments: None)
    arguments = [write_study(tmp_path), "--data", tmp_path, "--work", tmp_path / "w"]
    assert step_times.main([str(argument) for argument in arguments]) == 0
    times = {"pretraining": pytest.approx(1.0), "finetuning": pytest.approx(0.25)}
    assert Results(tmp_path / "results").step_times("s", "fcos") == times
    assert len(given) == 2 * 2 * 2  # stages, detectors, rounds
    assert {(steps, every) for _, steps, every in given} == {(20, None)}
    # One detector anew; the other keeps its times.
    path = tmp_path / "results/step_times.json"
    content = json.loads(path.read_text())
    for of in content["seconds"]["s"].values():
        of["pretraining"] = 9.0
    path.write_text(json.dumps(content))
    arguments += ["--detectors", "fcos"]
    assert step_times.main([str(argument) for argument in arguments]) == 0
    results = Results(tmp_path / "results")
    assert results.step_times("s", "fcos")["pretraining"] == pytest.approx(1.0)
    assert results.step_times("s", "retinanet")["pretraining"] == 9.0
    assert results.step_times("other", "fcos") is None
