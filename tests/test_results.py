"""The results of a study: what was tuned, and which cells follow."""

from __future__ import annotations

from experiments.results import Results, all_cells, block_cells, tuned_recipe
from tests.helpers.study_files import read_study, score, tune


def lr(recipe):
    return dict(recipe)["optim.lr"]


def test_the_best_recipe_wins(tmp_path):
    study, results = read_study(tmp_path), Results(tmp_path / "results")
    tune(study, results, backbone=0.1, aligndet=0.2)
    assert lr(tuned_recipe(study, results, "fcos", "s", "backbone")) == 0.1
    assert lr(tuned_recipe(study, results, "fcos", "s", "aligndet")) == 0.2


def test_there_is_no_recipe_before_all_are_run(tmp_path):
    study, results = read_study(tmp_path), Results(tmp_path / "results")
    first, second = study.tuning_cells("s", "fcos", "backbone")
    score(results, first, 3.0)
    assert tuned_recipe(study, results, "fcos", "s", "backbone") is None
    assert block_cells(study, results, study.blocks["short"]) == []
    score(results, second, 3.0)  # equal: the first wins
    assert lr(tuned_recipe(study, results, "fcos", "s", "backbone")) == 0.1
    assert {c.start for c in block_cells(study, results, study.blocks["short"])} == {"backbone"}
    # A detector that is not tuned has no recipe.
    assert tuned_recipe(study, results, "retinanet", "s", "backbone") is None


def test_recipes_can_be_those_of_another_start_or_set(tmp_path):
    def change(content):
        content["sets"]["t"] = content["sets"]["s"] | {"recipe_of": "s"}
        short = content["blocks"]["short"]
        content["blocks"]["same"] = short | {"recipes": ["backbone"], "sets": ["t"]}

    study, results = read_study(tmp_path, change), Results(tmp_path / "results")
    tune(study, results, backbone=0.1, aligndet=0.2)
    own = {c.start: lr(c.recipe) for c in block_cells(study, results, study.blocks["short"])}
    assert own == {"backbone": 0.1, "aligndet": 0.2, "neck": 0.2}
    same = {(c.data, lr(c.recipe)) for c in block_cells(study, results, study.blocks["same"])}
    assert same == {("t", 0.1)}


def test_blocks_share_the_cells_they_have_in_common(tmp_path):
    def change(content):
        content["blocks"]["again"] = content["blocks"]["short"] | {"iterations": [20, 40]}

    study, results = read_study(tmp_path, change), Results(tmp_path / "results")
    tune(study, results, backbone=0.1, aligndet=0.1)
    # Grid 4; lengths 10, 20 and 40, three starts, three seeds.
    assert len(all_cells(study, results)) == 4 + 3 * 3 * 3


def test_results_are_read_back(tmp_path):
    study, results = read_study(tmp_path), Results(tmp_path / "results")
    cell = study.tuning_cells("s", "fcos", "backbone")[0]
    assert results.get(cell) is None
    assert results.final_ap(cell) is None
    score(results, cell, None or 0.0)
    assert results.final_ap(cell) == 0.0
    assert Results(tmp_path / "results").get(cell)["wall_seconds"] == 60.0
