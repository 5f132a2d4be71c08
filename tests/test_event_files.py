"""Event files, read back by TensorBoard itself."""

from __future__ import annotations

import importlib.util
import json

import pytest

from aligndet.event_files import FOLDER, EventFiles, check_tensorboard

pytestmark = pytest.mark.usefixtures("small_backbones")


def read(folder):
    """Steps and values of each key."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder))
    events.Reload()
    return {
        key: [(event.step, event.value) for event in events.Scalars(key)]
        for key in events.Tags()["scalars"]
    }


def test_a_run_has_the_numbers_of_its_lines(tmp_path, write_config, script):
    config = write_config(tmp_path / "run", loop__tensorboard=True)
    script("finetune", "--config", config)
    text = (tmp_path / "run" / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    found = read(tmp_path / "run" / FOLDER)
    for key in ("loss", "loss_box", "lr"):
        expected = [(line["step"], pytest.approx(line[key], rel=1e-6)) for line in lines]
        assert found[key] == expected
    assert "step" not in found


def test_what_is_repeated_after_a_kill_is_shown_once(tmp_path):
    first = EventFiles(tmp_path, 0)
    for step in (1, 2, 3):
        first.write({"step": step, "loss": float(step), "AP": None})
    again = EventFiles(tmp_path, 2)
    for step in (3, 4):
        again.write({"step": step, "loss": 10.0 * step})
    assert read(tmp_path / FOLDER) == {"loss": [(1, 1.0), (2, 2.0), (3, 30.0), (4, 40.0)]}


def test_without_the_package_the_run_does_not_begin(tmp_path, write_config, error_of, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "tensorboard" else real(name)
    )
    check_tensorboard(False)
    message = error_of(
        "finetune", "--config", write_config(tmp_path / "run", loop__tensorboard=True)
    )
    assert "tensorboard is not installed; install it, or set loop.tensorboard=false" in message
    assert not (tmp_path / "run").exists()
