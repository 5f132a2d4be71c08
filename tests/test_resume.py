"""A run that is killed and resumed ends like one that was not, bit by bit: both stages, each
detector."""

from __future__ import annotations

import contextlib
import importlib
import itertools
import json
import multiprocessing
import os
import shutil
import signal
import sys

import pytest
import torch

from aligndet.run_directory import RunDirectory
from tests.helpers.narrow_backbones import narrow_backbones
from tests.helpers.small_detectors import OPTIONS

pytestmark = pytest.mark.usefixtures("small_backbones")

STEPS = 6
# Few samples, so that they are drawn at random.
FEW = {"mask_rcnn": {"rpn_samples": 64, "roi_samples": 16}, "detr": {"dropout": 0.1}}
SAMPLES = {"mask_rcnn": 8}

# Where each is killed: when a method returns for the n-th time.
PLACES = {
    # After line 5 of metrics.jsonl: the checkpoint is at step 4.
    "pretrain": (RunDirectory, "log", 5),
    # Within the second save, at step 4: the file is written, but not yet in place.
    "finetune": (torch, "save", 2),
}
CHECKPOINT = {"pretrain": 4, "finetune": 2}  # the step each is resumed from
DETECTORS = [detector for detector in OPTIONS if detector != "faster_rcnn"]  # in Mask R-CNN
RUNS = [f"{script}_{detector}" for script in PLACES for detector in DETECTORS]


def settings(name):
    """Changes to the config of a run."""
    detector = name.partition("_")[2]
    return {
        "model__detector": detector,
        "model__options": {**OPTIONS[detector], **FEW.get(detector, {})},
        "schedule__iterations": STEPS,
        "box_domain__samples": SAMPLES.get(detector, 150),
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory, write_config, script):
    """Uninterrupted runs `NAME.whole`, and `NAME.killed` as the kill left them."""
    folder = tmp_path_factory.mktemp("resume")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, *PLACES])  # imports take longer than the runs
    children = {}
    for name in RUNS:
        path = write_config(folder / f"{name}.killed", **settings(name))
        children[name] = context.Process(target=run_and_die, args=(script_of(name), path))
        children[name].start()
    for name in RUNS:
        path = write_config(folder / f"{name}.whole", **settings(name))
        script(script_of(name), "--config", path)
    for name, child in children.items():
        child.join()
        log = folder / f"{name}.killed.log"
        assert child.exitcode == -signal.SIGKILL, f"{name} was not killed:\n{log.read_text()}"
    return folder


def run_and_die(script, config):
    """Kill -9 at an exact place, in a process of its own."""
    owner, method, times = PLACES[script]
    function, calls = getattr(owner, method), itertools.count(1)

    def wrapped(*args, **kwargs):
        function(*args, **kwargs)
        if next(calls) == times:
            os.kill(os.getpid(), signal.SIGKILL)

    setattr(owner, method, wrapped)
    sys.argv = [script, "--config", str(config)]
    with (
        open(config.with_suffix(".log"), "w") as log,
        contextlib.redirect_stdout(log),
        contextlib.redirect_stderr(log),
        narrow_backbones(),
    ):
        importlib.import_module(script).main()


def script_of(name):
    return name.partition("_")[0]


def lines(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def without_speed(line):
    return {key: value for key, value in line.items() if key != "images_per_second"}


def assert_equal_tensors(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


@pytest.mark.parametrize("name", RUNS)
def test_killed_and_resumed_equals_uninterrupted(folder, script, capsys, name):
    killed, whole = folder / f"{name}.killed", folder / f"{name}.whole"
    last = torch.load(killed / "last.pt", weights_only=True)
    assert last["step"] == CHECKPOINT[script_of(name)]
    assert len(lines(killed)) > CHECKPOINT[script_of(name)]  # lines that will be dropped
    assert not (killed / "weights.pt").exists()
    with open(killed / "metrics.jsonl", "a") as file:
        file.write('{"step": 6, "lo')  # as if the kill had come within a line, too

    script(script_of(name), "--config", folder / f"{name}.killed.yaml")
    assert f"resumed at step {CHECKPOINT[script_of(name)]}" in capsys.readouterr().out

    assert [line["step"] for line in lines(killed)] == list(range(1, STEPS + 1))
    assert [without_speed(line) for line in lines(killed)] == [
        without_speed(line) for line in lines(whole)
    ]
    ours, theirs = (torch.load(run / "last.pt", weights_only=True) for run in (killed, whole))
    assert ours["step"] == theirs["step"] == STEPS
    assert_equal_tensors(ours["model"], theirs["model"])
    velocities = [
        {number: s["momentum_buffer"] for number, s in content["optimizer"]["state"].items()}
        for content in (ours, theirs)
    ]
    assert_equal_tensors(*velocities)
    ours, theirs = (torch.load(run / "weights.pt", weights_only=True) for run in (killed, whole))
    assert_equal_tensors(ours["model"], theirs["model"])
    if script_of(name) == "finetune":
        assert (killed / "results.json").read_text() == (whole / "results.json").read_text()


@pytest.mark.parametrize("name", RUNS)
def test_resuming_with_other_settings_is_refused(folder, error_of, name):
    path = folder / f"{name}.whole.yaml"
    before = (folder / f"{name}.whole" / "last.pt").read_bytes()
    message = error_of(script_of(name), "--config", path, "optim.lr=0.02", "data.workers=1")
    assert "last.pt: was made with other settings (optim.lr: 0.01 -> 0.02);" in message
    assert (folder / f"{name}.whole" / "last.pt").read_bytes() == before


def test_resume_none_starts_over(tmp_path, write_config, script):
    path = write_config(tmp_path / "run", schedule__iterations=1)
    script("pretrain", "--config", path)
    first = torch.load(tmp_path / "run" / "last.pt", weights_only=True)
    script("pretrain", "--config", path, "--resume", "none", "optim.lr=0.02")
    second = torch.load(tmp_path / "run" / "last.pt", weights_only=True)
    assert second["step"] == 1
    assert second["config"]["optim"]["lr"] == 0.02
    key = "online.detector.head.cls_tower.0.weight"
    assert not torch.equal(first["model"][key], second["model"][key])
    assert [line["lr"] for line in lines(tmp_path / "run")] == [0.02]


def test_a_truncated_checkpoint_is_named(tmp_path, write_config, error_of):
    path = write_config(tmp_path / "run")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "last.pt").write_bytes(b"PK\x03\x04 half of a file")
    message = error_of("pretrain", "--config", path)
    assert "run/last.pt: not a readable checkpoint" in message
    assert "--resume" in message


@pytest.mark.parametrize("name", ["pretrain_fcos", "finetune_retinanet"])
def test_a_damaged_checkpoint_costs_the_steps_since_the_one_before(
    folder, tmp_path, script, write_config, capsys, name
):
    """A run is stopped after its second save, its last.pt is cut, and it ends as if nothing was."""
    whole = folder / f"{name}.whole"
    path = write_config(tmp_path / "run", **settings(name))
    shutil.copytree(whole, tmp_path / "run")
    for file in ("weights.pt", "results.json"):
        (tmp_path / "run" / file).unlink(missing_ok=True)
    last, previous = tmp_path / "run" / "last.pt", tmp_path / "run" / "last.pt.1"
    assert torch.load(previous, weights_only=True)["step"] == STEPS - 2
    last.write_bytes(last.read_bytes()[:-1000])
    script(script_of(name), "--config", path)
    output = capsys.readouterr().out
    assert "last.pt: is damaged (BadZipFile: File is not a zip file); resuming from " in output
    assert f"resumed at step {STEPS - 2}" in output
    ours, theirs = (torch.load(run / "last.pt", weights_only=True) for run in (last.parent, whole))
    assert ours["step"] == STEPS
    assert_equal_tensors(ours["model"], theirs["model"])
    assert [without_speed(line) for line in lines(last.parent)] == [
        without_speed(line) for line in lines(whole)
    ]


def test_a_state_that_does_not_fit_is_refused_before_anything_changes(folder, tmp_path, error_of):
    name = "finetune_fcos"
    shutil.copytree(folder / f"{name}.whole", tmp_path / "run")
    run, last = tmp_path / "run", tmp_path / "run" / "last.pt"
    content = torch.load(last, weights_only=True)
    del content["checksum"]
    content["optimizer"]["param_groups"][0]["weight_decay"] = 0.5
    torch.save(content, last)
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    path = folder / f"{name}.whole.yaml"
    message = error_of("finetune", "--config", path, f"output_dir={run}")
    assert (
        "last.pt: does not fit this run (its optimiser has weight_decay=0.5, not 0.0001)" in message
    )
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before
