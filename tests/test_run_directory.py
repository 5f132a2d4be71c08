"""The files of a run: what is kept, dropped and refused when it is opened again."""

from __future__ import annotations

import dataclasses
import json
import math
import os

import pytest
import torch
import yaml

from aligndet import checkpoint, dist, former_run
from aligndet.config import Config, load_config, plain
from aligndet.run_directory import RunDirectory
from data.build import SplitConfig


@pytest.fixture
def config(tmp_path):
    return Config(output_dir=str(tmp_path / "run"))


def started(config, step=4):
    """A run directory with a checkpoint at `step` and metrics two steps past it."""
    run = RunDirectory(config.output_dir)
    assert reopen(run, config) is None
    for done in range(1, step + 3):
        run.log({"step": done, "loss": 1.0 / done})
    content = {"step": step, "model": {}, "config": plain(config), "optimizer": {}, "processes": 1}
    checkpoint.save(content, run.last)
    return run


def reopen(run, config, resume="auto", inputs=None):
    """As the scripts do: find the checkpoint, then continue in the directory."""
    state = run.find(config, resume, inputs)
    run.open(config, state)
    return state


def steps(run):
    if not run.metrics.exists():
        return []
    return [json.loads(line)["step"] for line in run.metrics.read_text().splitlines()]


def test_a_new_run_writes_its_resolved_config(config, tmp_path):
    run = RunDirectory(config.output_dir)
    assert reopen(run, config) is None
    assert load_config(run.path / "config.yaml") == config
    assert yaml.safe_load((run.path / "config.yaml").read_text())["optim"]["momentum"] == 0.9


def test_auto_resumes_and_drops_metrics_past_the_checkpoint(config):
    run = started(config)
    assert steps(run) == [1, 2, 3, 4, 5, 6]
    state = reopen(run, config)
    assert state["step"] == 4
    assert steps(run) == [1, 2, 3, 4]


@pytest.mark.parametrize("torn", ['{"step": 4, "lo', '{"step": 4, "x": {}', "\x00\x00", "7"])
def test_a_line_cut_off_by_a_kill_is_dropped(config, torn):
    run = started(config)
    with open(run.metrics, "a") as file:
        file.write(torn)
    reopen(run, config)
    assert steps(run) == [1, 2, 3, 4]
    run.log({"step": 5, "loss": 0.2})
    assert steps(run) == [1, 2, 3, 4, 5]


def test_a_line_without_its_newline_is_kept_whole(config):
    run = started(config)
    run.metrics.write_text('{"step": 1}\n{"step": 2}')
    reopen(run, config)
    run.log({"step": 3})
    assert steps(run) == [1, 2, 3]


def test_none_starts_over_for_good(config):
    run = started(config)
    assert reopen(run, config, "none") is None
    assert steps(run) == []
    # A kill before the first checkpoint must not lead back to the old run.
    assert reopen(run, config) is None


RESULTS = (
    *("results.json", "detections.json", "weights_best.pt", "manifest.json", "nonfinite_rank1.pt"),
    *("evaluation.json", "evaluation_detections.json", "tensorboard/a", "reconstructions/1.jpg"),
)
# May be what the new run starts from.
OTHERS = ("weights.pt", "weights_imagenet.pt", "train_detections.json", "clusters.pt")


def finished(config):
    run = started(config)
    for name in (*RESULTS, *OTHERS):
        (run.path / name).parent.mkdir(exist_ok=True)
        (run.path / name).write_text(name)
    return run


@pytest.mark.parametrize("resume", ["auto", "none"])
def test_results_of_the_run_before_are_not_taken_for_those_of_a_new_one(config, resume):
    run = finished(config)
    if resume == "auto":
        run.last.unlink()
    changed = dataclasses.replace(config, seed=7)
    assert reopen(run, changed, resume) is None
    assert not any((run.path / name).exists() for name in RESULTS)
    assert all((run.path / name).read_text() == name for name in OTHERS)
    former = run.path / "former"
    assert [(former / name).read_text() for name in RESULTS] == list(RESULTS)
    assert load_config(former / "config.yaml") == config
    assert len((former / "metrics.jsonl").read_text().splitlines()) == 6
    # A run that did not come to its end is not kept.
    run.log({"step": 1})
    assert reopen(run, config, "none") is None
    assert steps(run) == []
    # One that did has a folder of its own.
    (run.path / "results.json").write_text("second")
    assert reopen(run, config, "none") is None
    assert (former / "results.json").read_text() == "results.json"
    assert (run.path / "former_2" / "results.json").read_text() == "second"


def test_a_kill_while_results_are_put_aside_loses_none(config, monkeypatch):
    run = finished(config)
    move, moved = os.replace, []

    def killed(source, target):
        if len(moved) == 3:
            raise KeyboardInterrupt
        moved.append(source.name)
        move(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(former_run.os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            former_run.put_aside(run.path)
    former_run.put_aside(run.path)
    former = [path for path in run.path.glob("former*/**/*") if path.is_file()]
    there = ["/".join(path.relative_to(run.path).parts[1:]) for path in former]
    assert sorted(there) == sorted([*RESULTS, "config.yaml", "metrics.jsonl"])


def test_a_resumed_run_keeps_its_results(config):
    run = finished(config)
    assert reopen(run, config)["step"] == 4
    assert all((run.path / name).exists() for name in RESULTS)
    assert not (run.path / "former").exists()


def test_a_named_file_is_resumed(config, tmp_path):
    started(config)
    other = dataclasses.replace(config, output_dir=str(tmp_path / "other"))
    state = reopen(RunDirectory(other.output_dir), other, f"{config.output_dir}/last.pt")
    assert state["step"] == 4
    with pytest.raises(ValueError, match=r"nothing\.pt: no such file; give --resume"):
        reopen(RunDirectory(other.output_dir), other, str(tmp_path / "nothing.pt"))


def test_other_settings_are_refused_by_name(config):
    run = started(config)
    other = dataclasses.replace(
        config, seed=5, optim=dataclasses.replace(config.optim, lr=0.5), amp="bf16"
    )
    with pytest.raises(ValueError, match=r"last\.pt: was made with other settings") as error:
        reopen(run, other)
    assert "seed: 0 -> 5" in str(error.value)
    assert "optim.lr: 0.01 -> 0.5" in str(error.value)
    assert "amp: none -> bf16" in str(error.value)
    assert "--resume none" in str(error.value)
    assert steps(run) == [1, 2, 3, 4, 5, 6]  # nothing was touched
    assert load_config(run.path / "config.yaml") == config


def test_settings_without_influence_on_the_result_may_change(config):
    run = started(config)
    other = dataclasses.replace(
        config,
        device="cpu",
        loop=dataclasses.replace(config.loop, log_every=1),
        image=dataclasses.replace(config.image, probe_train="a", probe_val="b"),
        data=dataclasses.replace(config.data, workers=7),
        evaluation=dataclasses.replace(config.evaluation, every=3),
    )
    assert reopen(run, other)["step"] == 4


def moved(config, folder):
    """The same run with all paths of its data and backbone written differently."""
    split = SplitConfig(f"{folder}/images", f"{folder}/train.json", f"{folder}/proposals.json")
    data = dataclasses.replace(config.data, train=split)
    model = dataclasses.replace(config.model, backbone_weights=f"{folder}/r18.pth")
    return dataclasses.replace(config, data=data, model=model)


INPUTS = {"data.train": "a1", "model.backbone_weights": "b2", "--init": "c3"}


def test_data_may_move_but_not_change(config):
    config = moved(config, "disk1")
    run = RunDirectory(config.output_dir)
    reopen(run, config, inputs=INPUTS)
    content = {"step": 4, "model": {}, "config": plain(config), "optimizer": {}, "processes": 1}
    checkpoint.save({**content, "inputs": run.inputs}, run.last)
    elsewhere = moved(config, "disk2")
    assert reopen(run, elsewhere, inputs=INPUTS)["step"] == 4
    # A backbone file that is gone is not needed; what it was is not forgotten.
    assert reopen(run, elsewhere, inputs=INPUTS | {"model.backbone_weights": None})["step"] == 4
    assert run.inputs == INPUTS
    for key in INPUTS:
        with pytest.raises(ValueError, match=f"another {key} .its names or content.*--resume none"):
            run.find(elsewhere, "auto", INPUTS | {key: "other"})
    checkpoint.save(content, run.last)  # of an older version, which kept no digests
    assert reopen(run, config, inputs=INPUTS)["step"] == 4
    with pytest.raises(ValueError, match="data.train.images: disk1/images -> disk2/images"):
        run.find(elsewhere, "auto", INPUTS)


def test_a_directory_may_be_named_for_its_checkpoint(config, tmp_path):
    run = started(config)
    other = RunDirectory(tmp_path / "other")
    assert reopen(other, config, str(run.path))["step"] == 4
    with pytest.raises(ValueError, match="other: holds no last.pt; give --resume the directory"):
        RunDirectory(tmp_path / "third").find(config, str(other.path))


def test_a_checkpoint_may_lack_keys_that_are_newer(config):
    run = started(config)
    content = torch.load(run.last, weights_only=True)
    del content["config"]["data"]["exif"], content["config"]["transfer"]
    checkpoint.save(content, run.last)
    assert reopen(run, config)["step"] == 4
    turned = dataclasses.replace(config, data=dataclasses.replace(config.data, exif="apply"))
    with pytest.raises(ValueError, match="data.exif: stored -> apply"):
        run.find(turned, "auto")


def test_another_number_of_processes_is_refused(config, monkeypatch):
    """The order of the images and the length of an epoch depend on it."""
    run = started(config)
    monkeypatch.setattr(dist, "world_size", lambda: 2)
    with pytest.raises(ValueError, match=r"last\.pt: was made by 1 process, not 2; start 1"):
        reopen(run, config)


def test_half_written_files_of_a_killed_run_are_removed(config):
    run = started(config)
    (run.path / f".last.pt.{'12' * 16}.tmp").write_bytes(b"half")
    (run.path / ".notes.tmp").write_bytes(b"of the user")
    reopen(run, config)
    names = {"config.yaml", "metrics.jsonl", "last.pt", ".lock", ".notes.tmp"}
    assert {path.name for path in run.path.iterdir()} == names


def test_unusable_checkpoints_are_refused(config):
    run = started(config)
    whole = run.last.read_bytes()
    run.last.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"last\.pt: not a readable checkpoint"):
        reopen(run, config)
    torch.save({"model": {}, "stage": "box", "config": plain(config.model)}, run.weights)
    with pytest.raises(ValueError, match=r"weights\.pt: holds weights only"):
        reopen(run, config, str(run.weights))


def test_numbers_that_are_not_finite_become_null(config):
    run = RunDirectory(config.output_dir)
    reopen(run, config)
    run.log({"step": 1, "loss": math.nan, "a": math.inf, "b": 0.5, "AP": None})
    assert json.loads(run.metrics.read_text()) == {
        "step": 1,
        "loss": None,
        "a": None,
        "b": 0.5,
        "AP": None,
    }


def saved(run, config, step):
    """As `train.State.save` does."""
    content = {"step": step, "model": {}, "config": plain(config), "optimizer": {}, "processes": 1}
    checkpoint.save(content, run.last, run.previous)


def cut(path):
    path.write_bytes(path.read_bytes()[:-50])


def test_a_damaged_checkpoint_is_replaced_by_the_one_before(config, capsys):
    run = started(config, step=2)
    saved(run, config, 4)
    cut(run.last)
    state = run.find(config, "auto")
    assert state["step"] == 2
    assert run.last.stat().st_size != run.previous.stat().st_size  # nothing has changed so far
    run.open(config, state)
    assert steps(run) == [1, 2]
    assert "last.pt: is damaged (" in capsys.readouterr().out
    # The damaged file is gone: it must not become the one before at the next save.
    saved(run, config, 3)
    assert checkpoint.load(run.last, "--resume")["step"] == 3
    assert checkpoint.load(run.previous, "--resume")["step"] == 2


def test_a_whole_checkpoint_of_other_settings_is_not_replaced(config):
    run = started(config, step=2)
    other = dataclasses.replace(config, seed=5)
    saved(run, other, 4)
    with pytest.raises(ValueError, match=r"last\.pt: was made with other settings \(seed: 5 -> 0"):
        run.find(config, "auto")


def test_none_removes_the_one_before_too(config):
    run = started(config, step=2)
    saved(run, config, 4)
    assert reopen(run, config, "none") is None
    assert not run.last.exists()
    assert not run.previous.exists()
    assert reopen(run, config) is None
