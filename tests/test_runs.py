"""From a cell to its config, its command and its result."""

from __future__ import annotations

import json
import os
import sys

import pytest

from data.errors import DataError
from experiments import runs
from experiments.configs import Place, comparable, config_of, resolved
from experiments.results import Results, all_cells
from experiments.runs import Attempts, FailedRun, check, command, init_of, perform
from experiments.study import Cell, Pretraining
from tests.helpers.study_files import read_study

RECIPE = (("optim.lr", 0.1), ("optim.weight_decay", 0.0))
PRETRAINING = Pretraining("s", "fcos", "aligndet")


def cell(start="backbone", percent=100, seed=3):
    return Cell("s", "fcos", start, percent, 20, RECIPE, seed)


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path / "data", tmp_path / "data/runs")


def test_config_of_a_cell(tmp_path, place):
    study = read_study(tmp_path)
    config = config_of(study, place, cell("neck", percent=10))
    train, val = config["data"]["train"], config["data"]["val"]
    assert train["images"] == str(place.root / "s/train")
    assert train["annotations"] == str(place.work / "labels/s/train/10percent_fold3.json")
    assert val == {
        "images": str(place.root / "s/val"),
        "annotations": str(place.root / "s/val.json"),
    }
    assert config["schedule"] == {"iterations": 20}
    assert config["evaluation"] == {"batch_size": 4, "every": 5}
    assert config["optim"] == {"lr": 0.1, "weight_decay": 0.0}
    assert (config["seed"], config["transfer"]) == (3, {"leave_out": ["head."]})
    assert config["model"]["options"] == {"channels": 16}


def test_pretraining_sees_neither_labels_nor_validation(tmp_path, place):
    study = read_study(tmp_path)
    config = config_of(study, place, PRETRAINING)
    assert "val" not in config["data"]
    assert set(config["data"]["train"]) == {"images", "proposals"}
    assert "train.json" not in json.dumps(config)
    assert "s/val" not in json.dumps(config)
    cold = config_of(study, place, Pretraining("s", "fcos", "cold"))
    assert cold["box_domain"] == {"temperature": 0.1}
    assert {**cold, "output_dir": "", "box_domain": {}} == {
        **config, "output_dir": "", "box_domain": {}
    }  # fmt: skip


def test_heads_that_are_warmed_up_see_the_labels(tmp_path, place):
    def change(content):
        warm = {"schedule.iterations": 5, "model.frozen_stages": 5}
        content["starts"]["cold"] |= {"module": "finetune", "pretraining": warm}

    study, cold = read_study(tmp_path, change), Pretraining("s", "fcos", "cold")
    config = config_of(study, place, cold)
    assert config["data"] == config_of(study, place, cell())["data"]
    assert config["schedule"] == {"iterations": 5}
    assert config["model"]["frozen_stages"] == 5
    assert command(study, place, cold, tmp_path / "c.yaml")[2:4] == ["finetune", "--config"]


def test_a_detector_overrides_what_is_set_for_all_pretrainings(tmp_path, place):
    own = {"optim.lr": 0.5, "seed": 7}
    study = read_study(tmp_path, lambda content: content["detectors"]["fcos"].update(own))
    assert config_of(study, place, PRETRAINING)["optim"] == {"lr": 0.5}
    config = config_of(study, place, cell())  # where the recipe and the cell win
    assert (config["optim"]["lr"], config["seed"]) == (0.1, 3)


def test_what_is_kept_names_no_folder_of_the_machine(tmp_path, place):
    config = resolved(read_study(tmp_path), place, cell(percent=10))
    assert str(tmp_path) not in json.dumps(config)
    assert config["data"]["train"]["images"] == "DATA/s/train"
    assert config["data"]["train"]["annotations"] == "RUNS/labels/s/train/10percent_fold3.json"
    assert config["optim"]["momentum"] == 0.9  # defaults are written out
    other = Place(tmp_path / "a", tmp_path / "b")
    elsewhere = resolved(read_study(tmp_path), other, cell(percent=10))
    assert config == elsewhere


def test_commands_are_those_of_a_user(tmp_path, place):
    study = read_study(tmp_path)
    config = tmp_path / "c.yaml"
    python = [sys.executable, "-m"]
    assert command(study, place, cell(), config) == [*python, "finetune", "--config", str(config)]
    init = ["--init", str(place.work / "s/fcos/aligndet/pretraining/weights.pt")]
    assert command(study, place, cell("neck"), config)[5:] == init
    assert command(study, place, PRETRAINING, config)[2:4] == ["pretrain", "--config"]


def test_a_variant_is_named_in_the_command_and_the_result(tmp_path, place):
    def change(content):
        content["starts"]["cold"] |= {"module": "experiments.variants", "variant": {"classes": 8}}

    study, config = read_study(tmp_path, change), tmp_path / "c.yaml"
    cold = Pretraining("s", "fcos", "cold")
    line = command(study, place, cold, config)
    assert line[2:] == [
        "experiments.variants",
        "--config",
        str(config),
        "--variant",
        '{"classes": 8}',
    ]
    assert resolved(study, place, cold)["variant"] == {"classes": 8}
    assert "variant" not in resolved(study, place, PRETRAINING)


@pytest.fixture
def finished(monkeypatch):
    """Replaces the command by one that writes what a run leaves behind; returns the runs."""
    given = []

    def call(study, place, run, config):
        labels = place.root / study.sets[run.data].train_annotations
        labels.parent.mkdir(parents=True, exist_ok=True)
        boxes = [{"id": n, "image_id": image} for n, image in enumerate((4, 4, 7), start=1)]
        labels.write_text(json.dumps({"images": [], "annotations": boxes}))
        folder = place.folder(run)
        lines = [{"step": 10, "loss": 1.0}, {"step": 10, "AP": 3.0}, {"step": 20, "loss": 0.5}]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / "metrics.jsonl").write_text(text)
        (folder / "results.json").write_text(json.dumps({"AP": 4.0, "AP50": 8.0}))
        for name in ("last.pt", "last.pt.1", "weights.pt"):
            (folder / name).write_text("x")
        given.append(run)
        return [sys.executable, "-c", ""]

    monkeypatch.setattr(runs, "command", call)
    return given


def test_the_result_of_a_cell(tmp_path, place, finished):
    study, results = read_study(tmp_path), Results(tmp_path / "results")
    perform(study, place, cell("aligndet"), results)
    result = json.loads(results.file(cell("aligndet")).read_text())
    assert result["curve"] == [{"step": 10, "AP": 3.0}, {"step": 20, "AP": 4.0}]
    assert result["final"] == {"AP": 4.0, "AP50": 8.0}
    assert result["init"]["name"] == PRETRAINING.name
    assert result["config"]["seed"] == 3
    assert result["labelled"] == {"photographs": 2, "objects": 3}
    assert result["device"] == "CPU, 1 thread"
    assert len(result["commit"].rstrip("+")) == 40
    assert result["wall_seconds"] >= 0
    left = {path.name for path in place.folder(cell("aligndet")).iterdir()}
    assert not left & {"last.pt", "last.pt.1", "weights.pt"}


def test_a_pretraining_keeps_its_weights_and_all_it_logged(tmp_path, place, finished):
    study, results = read_study(tmp_path), Results(tmp_path / "results")
    perform(study, place, PRETRAINING, results)
    assert [line["step"] for line in results.get(PRETRAINING)["curve"]] == [10, 10, 20]
    assert (place.folder(PRETRAINING) / "weights.pt").exists()
    assert not (place.folder(PRETRAINING) / "last.pt").exists()


def test_time_of_stopped_tries_counts(tmp_path, place, finished):
    study, results = read_study(tmp_path), Results(tmp_path / "results")
    folder = place.folder(cell())
    folder.mkdir(parents=True)
    attempts = folder / "attempts.json"
    attempts.write_text('{"seconds": 1000.0, "commits": ["a"]}')
    perform(study, place, cell(), results)
    result = results.get(cell())
    assert 1000 <= result["wall_seconds"] < 1100
    assert result["commit"].startswith("a, ")
    assert not attempts.exists()  # made again, it would count twice


def test_time_is_kept_while_a_run_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "KEPT_EVERY", 0.01)
    path = tmp_path / "attempts.json"
    read = "import json, sys, time; time.sleep(0.5); print(json.load(open(sys.argv[1]))['seconds'])"
    with open(tmp_path / "log", "w") as log:
        status = Attempts(path).run([sys.executable, "-c", read, str(path)], log, os.environ)
    assert status == 0
    assert float((tmp_path / "log").read_text()) > 0


def test_a_failed_run_has_no_result_and_names_its_log(tmp_path, place, monkeypatch):
    study, results = read_study(tmp_path), Results(tmp_path / "results")
    line = [sys.executable, "-c", "raise SystemExit('no such weights')"]
    monkeypatch.setattr(runs, "command", lambda *arguments: line)
    with pytest.raises(FailedRun, match=r"seed3: exit status 1; the reason is in .*log\.txt"):
        perform(study, place, cell(), results)
    assert "no such weights" in (place.folder(cell()) / "log.txt").read_text()
    assert results.get(cell()) is None


def test_results_of_another_study_are_refused(tmp_path, place, finished):
    study, results = read_study(tmp_path), Results(tmp_path / "results")
    all_runs = [PRETRAINING, cell("aligndet")]
    for run in all_runs:
        perform(study, place, run, results)
    check(study, place, all_runs, results)
    moved = Place(tmp_path / "elsewhere", tmp_path / "work", threads=2, device="cuda")
    check(study, moved, all_runs, results)

    def wider(content):
        content["config"]["data.batch_size"] = 4

    with pytest.raises(DataError, match=r"pretraining\.json: .*\(data\.batch_size: 2 -> 4\); rest"):
        check(read_study(tmp_path, wider), place, all_runs, results)

    def longer(content):
        content["pretraining"]["schedule.iterations"] = 9

    longer_study = read_study(tmp_path, longer)
    with pytest.raises(DataError, match=r"pretraining\.json: .*\(schedule\.iterations: 8 -> 9\)"):
        check(longer_study, place, all_runs, results)
    # Made again, but not what started from it.
    results.save(PRETRAINING, {"config": resolved(longer_study, place, PRETRAINING)})
    with pytest.raises(DataError, match=r"seed3\.json: .*\(its pre-training\)"):
        check(longer_study, place, all_runs, Results(results.path))


def test_a_wrong_key_is_reported_before_the_first_run(tmp_path, place):
    def wrong(content):
        content["starts"]["cold"]["pretraining"] = {"box_domain.temprature": 0.2}

    study = read_study(tmp_path, wrong)
    with pytest.raises(ValueError, match=r"box_domain\.temprature; did you mean"):
        check(study, place, [Pretraining("s", "fcos", "cold")], Results(tmp_path / "results"))


@pytest.mark.parametrize("stage", ["pretraining", "finetuning"])
def test_a_wrong_key_is_reported_though_no_recipe_is_chosen(tmp_path, place, stage):
    def mistyped(content):
        start = {"title": "x", "pretraining": {}, "finetuning": {}, "recipe_of": "aligndet"}
        content["starts"]["x"] = start | {stage: {"optim.lrr": 0.1}}
        content["blocks"]["short"]["starts"] = ["backbone", "x"]

    study, results = read_study(tmp_path, mistyped), Results(tmp_path / "results")
    assert not any(cell.start == "x" for cell in all_cells(study, results))
    with pytest.raises(ValueError, match="optim.lrr"):
        check(study, place, [], results)


def test_a_warm_up_longer_than_the_run_is_reported_before_the_first_run(tmp_path, place):
    def shorter(content):
        content["config"]["schedule.warmup_iterations"] = 1
        content["starts"]["cold"]["pretraining"] = {"schedule.iterations": 1}

    study = read_study(tmp_path, shorter)
    with pytest.raises(ValueError, match="warmup_iterations is 1, but the run has 1 step;"):
        check(study, place, [Pretraining("s", "fcos", "cold")], Results(tmp_path / "results"))


def test_the_digest_of_a_pretraining_depends_only_on_its_config(tmp_path, place):
    study = read_study(tmp_path)
    results = Results(tmp_path / "results")
    assert init_of(study, place, cell(), results) is None
    mine = init_of(study, place, cell("aligndet"), results)
    elsewhere = Place(tmp_path / "x", tmp_path / "y")
    assert mine == init_of(study, elsewhere, cell("neck", 10, 1), results)
    assert mine["config_sha256"] != init_of(study, place, cell("cold"), results)["config_sha256"]


def test_what_a_result_depends_on(tmp_path):
    study = read_study(tmp_path)
    free = {"output_dir": 1, "device": 2, "amp": "bf16", "loop": {}, "image": {"blur": 0.5}}
    box_domain, transfer = {"box_domain": {"samples": 4}}, {"transfer": {"leave_out": []}}
    config = {**free, "seed": 3, "evaluation": {"every": 5, "batch_size": 8}}
    config |= box_domain | transfer
    assert comparable(study, PRETRAINING, config) == {"seed": 3} | box_domain
    rest = {"seed": 3, "evaluation": {"batch_size": 8}}
    assert comparable(study, cell(), config) == rest | transfer
    assert set(config["evaluation"]) == {"every", "batch_size"}  # not changed in place
