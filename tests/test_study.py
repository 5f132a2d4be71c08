"""Reading a study and expanding it into runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from data.errors import DataError
from experiments.configs import Place, resolved
from experiments.results import Results, all_cells
from experiments.runs import check
from experiments.study import Cell, Pretraining, Study
from tests.helpers.study_files import read_study, tune, write_study


@pytest.mark.parametrize("name", ["detr", "fair", "gains", "ideas", "masks", "smoke"])
def test_the_studies_of_the_project_are_valid(name, tmp_path):
    study = Study.read(Path("experiments") / f"{name}.yaml")
    cells = all_cells(study, Results(tmp_path))
    assert cells == list(study.all_tuning_cells())  # the rest waits for the tuning
    used = {s for group in (study.tuning, *study.blocks.values()) for s in group.starts}
    assert used == study.starts.keys()
    check(study, Place(tmp_path, tmp_path), cells, Results(tmp_path))  # every config builds


def test_a_start_is_tuned_with_every_recipe(tmp_path):
    study = read_study(tmp_path)
    cells = study.tuning_cells("s", "fcos", "aligndet")
    assert [dict(cell.recipe) for cell in cells] == [
        {"optim.lr": 0.1, "optim.weight_decay": 0.0},
        {"optim.lr": 0.2, "optim.weight_decay": 0.0},
    ]
    assert {cell.seed for cell in cells} == {0}
    assert len(list(study.all_tuning_cells())) == 4


def test_a_detector_can_have_recipes_of_its_own(tmp_path):
    def change(content):
        own = [{"optim.lr": 0.3, "optim.weight_decay": 0.0}]
        content["tuning"]["recipes_of"] = {"retinanet": own}

    study = read_study(tmp_path, change)
    rates = {
        name: [dict(cell.recipe)["optim.lr"] for cell in study.tuning_cells("s", name, "aligndet")]
        for name in study.detectors
    }
    assert rates == {"fcos": [0.1, 0.2], "retinanet": [0.3]}


def test_names_tell_all_cells_apart(tmp_path):
    study = read_study(tmp_path)
    results = Results(tmp_path / "results")
    tune(study, results, backbone=0.1, aligndet=0.2)
    cells = all_cells(study, results)
    assert len(cells) == 4 + 2 * 3 * 3
    assert len({cell.name for cell in cells}) == len(cells)
    recipe = (("optim.lr", 0.2), ("optim.weight_decay", 1e-4))
    cell = Cell("s", "fcos", "aligndet", 10, 400, recipe, 3)
    assert cell.name == "s/fcos/aligndet/10percent_400steps_lr0.2_weight_decay0.0001_seed3"
    cell = Cell("s", "fcos", "aligndet", 10, 400, (("optim.name", "adamw"),), 3)
    assert cell.name == "s/fcos/aligndet/10percent_400steps_nameadamw_seed3"


def test_each_seed_can_have_its_own_pretraining(tmp_path):
    study = read_study(tmp_path, lambda content: content.update(pretraining_per_seed=True))
    cell = Cell("s", "fcos", "neck", 100, 10, (), 3, "tune")
    pretraining = study.pretraining_of(cell)
    assert pretraining == Pretraining("s", "fcos", "aligndet", "tune", 3)
    assert pretraining.name == "s/fcos/aligndet/tune_pretraining_seed3"
    assert cell.name == "s/fcos/neck/tune_100percent_10steps__seed3"
    place = Place(tmp_path / "data", tmp_path / "work")
    assert resolved(study, place, pretraining)["seed"] == 3
    data = resolved(study, place, cell)["data"]
    assert data["val"]["images"] == data["train"]["images"] == "DATA/s/train"
    assert data["val"]["annotations"] == "RUNS/labels/s/train/tune.json"


@pytest.mark.parametrize("place", ["config", "sets", "pretraining", "detectors", "starts"])
def test_the_length_of_a_pretraining_is_that_of_its_config(tmp_path, place):
    def change(content):
        parts = {
            "config": content["config"],
            "sets": content["sets"]["s"]["config"],
            "pretraining": content["pretraining"],
            "detectors": content["detectors"]["fcos"],
            "starts": content["starts"]["aligndet"]["pretraining"],
        }
        parts["config"]["schedule.iterations"] = 1
        del parts["pretraining"]["schedule.iterations"]
        for number, part in enumerate(list(parts)[: list(parts).index(place) + 1], start=1):
            parts[part]["schedule.iterations"] = number

    study = read_study(tmp_path, change)
    config = resolved(study, Place(tmp_path, tmp_path), Pretraining("s", "fcos", "aligndet"))
    steps = config["schedule"]["iterations"]
    assert study.pretraining_steps("s", "fcos", "aligndet") == steps
    assert steps == ["config", "sets", "pretraining", "detectors", "starts"].index(place) + 1


def test_lengths_are_in_steps_of_the_set(tmp_path):
    def change(content):
        content["sets"]["s"]["steps"] = 40
        content["tuning"]["iterations"] = 0.5
        content["blocks"]["short"]["iterations"] = [0.25, 1]

    study, results = read_study(tmp_path, change), Results(tmp_path / "results")
    tune(study, results, backbone=0.1, aligndet=0.2)
    cells = all_cells(study, results)
    assert {(cell.seed, cell.iterations) for cell in cells if cell.seed < 2} == {
        *((0, 20), (1, 10), (1, 40))
    }


def test_starts_share_a_pretraining(tmp_path):
    study = read_study(tmp_path)
    cells = {s: Cell("s", "fcos", s, 100, 10, (), 1) for s in study.starts}
    mine = Pretraining("s", "fcos", "aligndet")
    assert study.pretraining_of(cells["backbone"]) is None
    assert study.pretraining_of(cells["aligndet"]) == study.pretraining_of(cells["neck"]) == mine
    assert study.pretraining_of(cells["cold"]) == Pretraining("s", "fcos", "cold")


def set_in(*path):
    """A change of the study's content."""

    def change(content):
        *keys, last, value = path
        for key in keys:
            content = content[key]
        content[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (set_in("block", {}), "block is unknown; did you mean blocks"),
        (set_in("sets", "s", "val", "x"), "sets.s.val is unknown"),
        (set_in("starts", "cold", {}), "starts.cold.title is not set; add it"),
        (set_in("starts", "cold", 3), "starts.cold is 3; it must be a section"),
        (set_in("blocks", "short", "starts", ["warm"]), "short.starts names 'warm', which is not "
         "one of backbone, aligndet, cold, neck"),
        (set_in("tuning", "recipes", [{"optim.lr": 1.0}, {"optim.name": "sgd"}]),
         "tuning.recipes needs recipes that all set the same keys"),
        (set_in("tuning", "recipes", []), "tuning.recipes needs recipes"),
        (set_in("tuning", "recipes_of", {"fcos": []}), "tuning.recipes needs recipes"),
        (set_in("tuning", "recipes_of", {"fcos": [{"optim.lr": 1.0}]}),
         "tuning.recipes needs recipes that all set the same keys"),
        (set_in("tuning", "recipes_of", {"ssd": [{"optim.lr": 1.0}]}),
         "tuning.recipes_of names 'ssd', which is not one of fcos, retinanet"),
        (set_in("blocks", "short", "figure", "pie"), "blocks.short.figure names 'pie'"),
        (set_in("blocks", "short", "split", "test"), "short.split names 'test'"),
        (set_in("blocks", "short", "recipes", ["warm"]), "short.recipes names 'warm'"),
        (set_in("starts", "neck", "init_of", "warm"), "starts.neck.init_of names 'warm'"),
        (set_in("starts", "cold", "proposals", "edge"), "starts.cold.proposals names 'edge'"),
        (set_in("tuning", "detectors", ["detr"]), "tuning.detectors names 'detr'"),
    ],
)  # fmt: skip
def test_mistakes_are_named(tmp_path, change, problem):
    with pytest.raises(DataError) as error:
        read_study(tmp_path, change)
    assert str(tmp_path / "study.yaml") in str(error.value)
    assert problem in str(error.value)


def test_files_that_are_not_yaml(tmp_path):
    with pytest.raises(DataError, match=r"none\.yaml: cannot be read as YAML"):
        Study.read(tmp_path / "none.yaml")
    path = write_study(tmp_path)
    path.write_text("a: [")
    with pytest.raises(DataError, match=r"study\.yaml: cannot be read as YAML"):
        Study.read(path)
    path.write_text("blocks: {}\ntuning: {}\nblocks: {}\n")
    with pytest.raises(DataError, match=r"the key 'blocks' is given twice.* line 3"):
        Study.read(path)
