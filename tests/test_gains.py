"""The order in which the runs of a study are made, and what becomes of those that fail."""

from __future__ import annotations

import threading

import pytest
import yaml

from experiments import gains
from experiments.configs import Place, config_of
from experiments.gains import main, run_all, wanted
from experiments.results import Results
from experiments.runs import FailedRun
from experiments.study import Cell, Pretraining
from tests.helpers.study_files import read_study, score, write_study


@pytest.fixture
def made(monkeypatch):
    """Runs score 5 instead of being made; returns them in order. `made.fail` names runs that
    fail, and `made.at_once` is how many ran at the same time."""

    class Made(list):
        fail = ()
        at_once = 0

    record, lock, busy = Made(), threading.Lock(), []

    def perform(study, place, run, results):
        with lock:
            busy.append(run)
            record.at_once = max(record.at_once, len(busy))
            record.append(run)
        try:
            if any(text in run.name for text in record.fail):
                raise FailedRun(f"{run.name}: exit status 1")
            if isinstance(run, Cell):
                score(results, run, 5.0)
            else:
                results.save(run, {})
                place.folder(run).mkdir(parents=True, exist_ok=True)
                config = yaml.safe_dump(config_of(study, place, run))
                (place.folder(run) / "config.yaml").write_text(config)
                place.weights(run).touch()
        finally:
            with lock:
                busy.remove(run)

    monkeypatch.setattr(gains, "perform", perform)
    monkeypatch.setattr(gains, "prepare", lambda *arguments: None)
    return record


@pytest.fixture
def started(tmp_path):
    place = Place(tmp_path / "data", tmp_path / "work")
    return read_study(tmp_path), place, Results(tmp_path / "results")


@pytest.mark.parametrize("jobs", [1, 2])
def test_everything_is_made_once_and_after_what_it_needs(started, made, jobs):
    study, _, results = started
    assert run_all(*started, [""], jobs) == 0
    assert made.at_once <= jobs
    assert len(made) == len(set(made)) == 4 + 1 + 2 * 3 * 3
    assert set(made) == set(wanted(study, results))
    pretraining = made.index(Pretraining("s", "fcos", "aligndet"))
    needing = [made.index(run) for run in made if isinstance(run, Cell) and run.start != "backbone"]
    assert pretraining < min(needing)
    # Cells of the blocks wait for the recipes: all tuning of their start comes first.
    tuning = {start: study.tuning_cells("s", "fcos", start) for start in ("backbone", "aligndet")}
    for run in made:
        if isinstance(run, Cell) and run.seed != 0:
            start = "aligndet" if run.start == "neck" else run.start
            assert all(made.index(cell) < made.index(run) for cell in tuning[start])


def test_a_second_call_makes_what_is_missing(started, made):
    study, place, results = started
    run_all(*started, [""], 1)
    results.file(made[-1]).unlink()
    results.file(made[3]).unlink()
    again = list(made)
    made.clear()
    assert run_all(study, place, Results(results.path), [""], 1) == 0
    assert set(made) == {again[-1], again[3]}


def test_weights_that_are_gone_are_made_again_if_a_cell_needs_them(started, made):
    study, place, results = started
    run_all(*started, [""], 1)
    pretraining = Pretraining("s", "fcos", "aligndet")
    place.weights(pretraining).unlink()
    made.clear()
    assert run_all(*started, [""], 1) == 0
    assert made == []  # nothing is missing from a complete study
    neck = next(run for run in wanted(study, results) if getattr(run, "start", "") == "neck")
    results.file(neck).unlink()
    assert run_all(study, place, Results(results.path), [""], 2) == 0
    assert made == [pretraining, neck]


def test_weights_of_other_settings_are_made_again(started, made):
    study, place, results = started
    run_all(*started, [""], 1)
    pretraining = Pretraining("s", "fcos", "aligndet")
    config = place.folder(pretraining) / "config.yaml"
    config.write_text(config.read_text().replace("batch_size: 2", "batch_size: 4"))
    neck = next(run for run in wanted(study, results) if getattr(run, "start", "") == "neck")
    results.file(neck).unlink()
    made.clear()
    assert run_all(study, place, Results(results.path), [""], 1) == 0
    assert made == [pretraining, neck]


def test_a_failed_run_stops_only_what_needs_it(started, made, capsys):
    study, _, results = started
    made.fail = ("aligndet/pretraining",)
    assert run_all(*started, [""], 2) == 1
    assert "s/fcos/aligndet/pretraining: exit status 1" in capsys.readouterr().err
    assert {run.start for run in made} == {"backbone", "aligndet"}  # the tuning and its own seeds
    cells = [run for run in made if isinstance(run, Cell)]
    assert {cell.start for cell in cells} == {"backbone"}
    assert len(cells) == 2 + 2 * 3


def test_only_some(started, made):
    assert run_all(*started, ["backbone/"], 1) == 0
    assert {run.start for run in made} == {"backbone"}
    made.clear()
    # The pre-training of a cell is made too, though its name has no "_seed0".
    assert run_all(*started, ["aligndet/100percent_10steps_lr0.1_weight_decay0_seed0"], 1) == 0
    assert [type(run) for run in made] == [Pretraining, Cell]


def test_the_command_lists_and_makes(tmp_path, made, capsys):
    study = str(write_study(tmp_path))
    arguments = [study, "--data", str(tmp_path), "--work", str(tmp_path / "work")]
    assert main([*arguments, "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5
    assert all(line.startswith("missing s/fcos/") for line in lines)
    assert made == []
    made.fail = ("seed1",)
    assert main(arguments) == 1


def test_a_wrong_study_is_one_line(tmp_path, capsys):
    assert main([str(tmp_path / "no.yaml"), "--data", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
