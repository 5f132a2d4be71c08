"""The report of a study, from results written by hand."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from matplotlib import pyplot
from matplotlib.axes import Axes

from data.json_files import write_json_atomic
from experiments.configs import Place, resolved
from experiments.convergence import Timed, convergence, which_is_quicker
from experiments.figures import subplots
from experiments.report import main, page, seeds_of
from experiments.results import Results, block_cells
from experiments.rows import rows_of
from experiments.study import Pretraining
from tests.helpers.study_files import read_study, score, tune, write_study

# AP of (start, steps), one per seed. Gains at 10 steps: 2, 3, 4; at 20 steps: 1, 0, -1.
SCORES = {
    ("backbone", 10): (10.0, 20.0, 30.0),
    ("aligndet", 10): (12.0, 23.0, 34.0),
    ("backbone", 20): (22.0, 22.0, 22.0),
    ("aligndet", 20): (23.0, 22.0, 21.0),
}


@pytest.fixture
def study(tmp_path):
    return read_study(tmp_path)


@pytest.fixture
def results(tmp_path, study):
    results = Results(tmp_path / "results")
    tune(study, results, backbone=0.1, aligndet=0.2)
    for cell in block_cells(study, results, study.blocks["short"]):
        if (cell.start, cell.iterations) in SCORES:
            score(results, cell, SCORES[cell.start, cell.iterations][cell.seed - 1])
    return Results(results.path)


def by_start(rows):
    return {(row.start, row.iterations): row for row in rows}


def test_gains_are_paired_by_seed(study, results):
    rows = by_start(rows_of(study, results, study.blocks["short"]))
    assert set(rows) == set(SCORES)
    assert rows["backbone", 10].gain is None
    # t(0.975, 2) = 4.3027; both differences have a standard deviation of 1.
    assert str(rows["aligndet", 10].gain) == "+3.00 ± 2.48"
    assert str(rows["aligndet", 20].gain) == "+0.00 ± 2.48"


def test_seeds_without_a_partner_do_not_count(study, results):
    cells = block_cells(study, results, study.blocks["short"])
    missing = next(c for c in cells if (c.start, c.iterations, c.seed) == ("backbone", 10, 3))
    results.file(missing).unlink()
    rows = by_start(rows_of(study, Results(results.path), study.blocks["short"]))
    gain = rows["aligndet", 10].gain
    assert (gain.mean, gain.pairs) == (pytest.approx(2.5), 2)
    assert len(rows["aligndet", 10].scores) == 3
    assert seeds_of(rows["aligndet", 10]) == "3, gain 2"
    assert seeds_of(rows["aligndet", 20]) == "3"
    assert seeds_of(rows["backbone", 10]) == "2"


@pytest.mark.parametrize(
    ("aligndet", "said"),
    [
        ({10: 23.0, 20: 22.0}, "reaches {} in at most 50 % of them."),
        ({10: 22.0, 20: 21.0}, "reaches {} in at most 50 % of them."),
        # 22 is three quarters of the way from 16 to 24: 17.5 of 20 steps.
        ({10: 16.0, 20: 24.0}, "reaches {} in 88 % of them (interpolated)."),
        ({10: 21.9, 20: 21.9}, "does not reach {}."),
    ],
)
def test_convergence_to_the_final_ap_of_the_first_start(study, results, aligndet, said):
    block = study.blocks["short"]
    for cell in block_cells(study, results, block):
        if cell.start == "aligndet":
            score(results, cell, aligndet[cell.iterations] + cell.seed - 2)  # on average
    rows = rows_of(study, Results(results.path), block)
    goal = "the 22.00 of backbone only with 20 fine-tuning steps"
    assert list(convergence(study, block, rows)) == [f"- s, fcos: AlignDet {said.format(goal)}"]


def test_convergence_compares_the_same_seeds(study, results):
    """Without AlignDet's seed 1, the goal is the mean of the seeds 2 and 3."""
    block = study.blocks["short"]
    for cell in block_cells(study, results, block):
        if cell.start == "aligndet":
            results.file(cell).unlink()
        elif cell.iterations == 20:
            score(results, cell, {1: 99.0, 2: 21.0, 3: 25.0}[cell.seed])
    for cell in block_cells(study, results, block):
        if cell.start == "aligndet" and cell.seed > 1:
            score(results, cell, {10: 21.0, 20: 25.0}[cell.iterations])
    rows = rows_of(study, Results(results.path), block)
    goal = "the 23.00 of backbone only with 20 fine-tuning steps"
    expected = f"- s, fcos: AlignDet reaches {goal} in 75 % of them (interpolated)."
    assert next(convergence(study, block, rows)) == expected


QUICK, SLOW = Timed(20, 22.0, 300.0), Timed(40, 30.0, 900.0)


@pytest.mark.parametrize(
    ("others", "said"),
    [
        ([Timed(10, 29.0, 901.0)], "A with 40 steps has 30.00 after 900 s. "
         "B takes longer for no higher AP with 10 steps (29.00 after 901 s)."),
        ([Timed(10, 20.0, 1000.0), Timed(20, 30.0, 1100.0), Timed(40, 31.0, 1300.0)],
         "A with 40 steps has 30.00 after 900 s. B takes longer for no higher AP with "
         "10 steps (20.00 after 1,000 s) and 20 steps (30.00 after 1,100 s)."),
        ([Timed(10, 31.0, 1000.0), Timed(20, 33.0, 1100.0)],
         "B takes 1,000 s or more; A was given 900 s at most."),
        ([Timed(10, 23.0, 500.0)], "No schedule of A is both quicker than B and as good."),
        ([Timed(10, 30.0, 900.0)], "No schedule of A is both quicker than B and as good."),
        # Beaten by a schedule that is not the best one.
        ([Timed(10, 21.0, 500.0)], "A with 20 steps has 22.00 after 300 s. "
         "B takes longer for no higher AP with 10 steps (21.00 after 500 s)."),
    ],
)  # fmt: skip
def test_the_time_of_the_pre_training_counts(others, said):
    assert which_is_quicker("A", "B", [QUICK, SLOW], others) == said


def test_seconds_are_those_of_the_pre_training_and_the_median_of_fine_tuning(
    study, results, tmp_path
):
    for cell in block_cells(study, results, study.blocks["short"]):
        if results.get(cell):
            seconds = {1: 100.4, 2: 2000.0, 3: 50.0}[cell.seed]
            results.save(cell, results.get(cell) | {"wall_seconds": seconds})
    pretraining = Pretraining("s", "fcos", "aligndet")
    run = {"wall_seconds": 1234.5, "device": "CPU", "torch": "2.11"}
    row = "| s | fcos | 100 % | 20 | AlignDet | 22.00 ± 1.00 | +0.00 ± 2.48 | 3 |"
    lines = list(page(study, Results(results.path), tmp_path))
    assert f"{row}  |" in lines  # no result of the pre-training: its time is not known
    assert not any("pre-training counted" in line for line in lines)
    results.save(pretraining, run)
    lines = list(page(study, Results(results.path), tmp_path))
    assert f"{row} 1,234 + 100 |" in lines
    assert (
        "- s, fcos, pre-training counted: backbone only with 20 steps has 22.00 after 100 s. "
        "AlignDet takes longer for no higher AP with 20 steps (22.00 after 1,335 s)."
    ) in lines


def test_intervals_are_counted(tmp_path, results):
    def change(content):
        content["blocks"]["again"] = content["blocks"]["short"] | {"iterations": [20]}

    lines = list(page(read_study(tmp_path, change), results, tmp_path))
    said = (
        "- **Many comparisons.** The tables show 3 intervals, of 2 different comparisons. None is"
    )
    assert any(line.startswith(said) for line in lines)
    _, _, made_by, *nothing = page(
        read_study(tmp_path, change), Results(tmp_path / "nothing"), tmp_path
    )
    assert made_by.startswith("Made by")  # names a folder that is called like this test
    assert "intervals" not in "\n".join(nothing)
    assert "Many comparisons" not in "\n".join(nothing)


def test_the_intervals_of_means_over_sets_count_too(tmp_path, results):
    def change(content):
        content["sets"]["t"] = content["sets"]["s"]
        content["tuning"]["sets"] = ["s", "t"]
        content["blocks"]["short"] |= {"sets": ["s", "t"], "iterations": [10]}
        content["blocks"]["short"]["starts"] = ["backbone", "aligndet"]

    study = read_study(tmp_path, change)
    tune(study, results, backbone=0.1, aligndet=0.2)
    for cell in block_cells(study, results, study.blocks["short"]):
        score(results, cell, SCORES[cell.start, 10][cell.seed - 1])
    text = "\n".join(page(study, Results(results.path), tmp_path))
    assert "In the mean over the 2 sets" in text
    assert "The tables show 3 intervals, of 3 different comparisons." in text


def test_the_page(study, results, tmp_path):
    lines = list(page(study, results, tmp_path))
    assert "| s | fcos | 100 % | 10 | AlignDet | 23.00 ± 11.00 | +3.00 ± 2.48 | 3 |  |" in lines
    assert "| s | fcos | 100 % | 20 | AlignDet | 22.00 ± 1.00 | +0.00 ± 2.48 | 3 |  |" in lines
    assert "| s | fcos | backbone only | **5.00** | 4.00 |" in lines
    assert "| s | fcos | AlignDet | 4.00 | **5.00** |" in lines
    assert "| s | fcos | gain with the same recipe | -1.00 | +1.00 |" in lines
    assert not any("mean of the starts" in line for line in lines)
    # 4 runs of the tuning and 12 cells of a minute each; no pre-training has a result.
    assert "| fine-tuning | 16 | 1.0 | 1.0 | 0.3 | CPU, torch 2.11 |" in lines
    assert (tmp_path / "short.png").stat().st_size > 5000
    assert f"![Short schedules]({tmp_path.name}/short.png)" in lines


def test_a_table_can_show_two_choices_of_recipes(tmp_path, results):
    """The best mean of both starts: AlignDet's 0.2 has one more than 0.1, its baseline one less."""

    def change(content):
        content["blocks"]["short"].update(
            recipes=["common", "own"], starts=["backbone", "aligndet"], iterations=[10]
        )

    study = read_study(tmp_path, change)
    for cell in study.tuning_cells("s", "fcos", "aligndet"):
        score(results, cell, {0.1: 4.0, 0.2: 9.0}[dict(cell.recipe)["optim.lr"]])
    results = Results(results.path)
    block = study.blocks["short"]
    for cell in block_cells(study, results, block):
        score(results, cell, {"backbone": 0.0, "aligndet": 8.0}[cell.start] + cell.recipe[0][1])
    results = Results(results.path)
    lines = list(page(study, results, tmp_path))
    assert "| s | fcos | mean of the starts | 4.50 | **6.50** |" in lines
    assert "same recipe for all" in "\n".join(lines)
    table = [line for line in lines if line.startswith("| s | fcos | 100")]
    assert table == [
        "| s | fcos | 100 % | 10 | same recipe | backbone only | 0.20 ± 0.00 |  | 3 |",
        "| s | fcos | 100 % | 10 | same recipe | AlignDet | 8.20 ± 0.00 | +8.00 ± 0.00 | 3 |",
        "| s | fcos | 100 % | 10 | own recipe | backbone only | 0.10 ± 0.00 |  | 3 |",
        "| s | fcos | 100 % | 10 | own recipe | AlignDet | 8.20 ± 0.00 | +8.10 ± 0.00 | 3 |",
    ]


def test_the_mean_over_sets_is_taken_seed_by_seed(tmp_path):
    def change(content):
        content["sets"]["t"] = content["sets"]["s"] | {"recipe_of": "s", "steps": 2}
        starts = ["backbone", "aligndet"]
        content["blocks"]["short"].update(sets=["s", "t"], starts=starts, iterations=[10])

    study, results = read_study(tmp_path, change), Results(tmp_path / "results")
    tune(study, results, backbone=0.1, aligndet=0.2)
    gains = {"s": (1.0, 2.0, 3.0), "t": (5.0, 6.0, 10.0)}  # their means: 3, 4, 6.5
    for cell in block_cells(study, results, study.blocks["short"]):
        gain = gains[cell.data][cell.seed - 1] if cell.start == "aligndet" else 0.0
        assert cell.iterations == {"s": 10, "t": 20}[cell.data]
        score(results, cell, 10.0 * cell.seed + gain)
    lines = list(page(study, Results(results.path), tmp_path))
    # A standard deviation of 1.803, times t(0.975, 2) = 4.3027, over sqrt(3).
    assert "| fcos | 100 % | AlignDet | +4.50 ± 4.48 | 3 |" in lines

    def two_lengths(content):
        change(content)
        content["blocks"]["short"]["iterations"] = [5, 10]

    study = read_study(tmp_path, two_lengths)
    for cell in block_cells(study, results, study.blocks["short"]):
        if results.get(cell) is None:
            score(results, cell, 1.0)
    lines = list(page(study, Results(results.path), tmp_path))
    assert "| fcos | 100 % | 50 % | AlignDet | +0.00 ± 0.00 | 3 |" in lines


def test_a_schedule_that_makes_up_for_a_pretraining(tmp_path):
    def change(content):
        content["pretraining"]["schedule.iterations"] = 8
        equal = {"longer_by": "aligndet", "recipe_of": "backbone"}
        content["starts"]["equal"] = {"title": "at equal time", **equal}
        content["starts"]["shared"] = {"title": "shared by five", "shared_by": 5, **equal}
        starts = ["backbone", "aligndet", "equal", "shared"]
        content["blocks"]["short"].update(starts=starts, iterations=[10], decide=True)

    study, results = read_study(tmp_path, change), Results(tmp_path / "results")
    tune(study, results, backbone=0.1, aligndet=0.2)
    block = study.blocks["short"]
    cells = block_cells(study, results, block)  # until the time of a step is known
    assert {cell.start for cell in cells} == {"backbone", "aligndet"}
    times = {"pretraining": 30.0, "finetuning": 12.0}  # so 8 steps take as long as 20
    results.path.mkdir(exist_ok=True)
    write_json_atomic({"seconds": {"s": {"fcos": times}}}, results.path / "step_times.json")
    steps = {cell.start: cell.iterations for cell in block_cells(study, results, block)}
    assert steps == {"backbone": 10, "aligndet": 10, "equal": 30, "shared": 14}
    for cell in block_cells(study, results, block):
        aps = {"backbone": 5.0, "aligndet": 7.0, "equal": 8.0, "shared": 6.0}
        score(results, cell, aps[cell.start] + cell.seed)
    lines = list(page(study, Results(results.path), tmp_path))
    assert "| s | fcos | 100 % | 30 | at equal time | 10.00 ± 1.00 | +3.00 ± 0.00 | 3 |" in lines
    # 8 steps of 30 s, 10 of 12 s.
    decisive = "4.0 min | 2.0 min | 7.00 ± 1.00 | 9.00 ± 1.00 | +2.00 ± 0.00 |"
    assert f"| s | 2 | 3 | fcos | {decisive}" in lines
    # What each row is compared with is the first start, also where its first seed is missing.
    results.file(block_cells(study, results, block)[0]).unlink()
    lines = list(page(study, Results(results.path), tmp_path))
    decisive = "4.0 min | 2.0 min | 7.50 ± 0.71 | 9.00 ± 1.00 | +2.00 ± 0.00 |"
    assert f"| s | 2 | 3 | fcos | {decisive}" in lines


def test_versions_that_differ_are_named(study, results, tmp_path):
    assert not any("different versions" in line for line in page(study, results, tmp_path))
    cell = block_cells(study, results, study.blocks["short"])[0]
    results.save(cell, results.get(cell) | {"torch": "2.12"})
    lines = list(page(study, Results(results.path), tmp_path))
    remark = "These runs were made with different versions of torch: 2.11, 2.12."
    assert lines.count(remark) == 1
    assert lines[lines.index(remark) - 2].startswith("| s | fcos | 100 % | 20 | AlignDet |")


def test_findings_come_first(tmp_path, study, results):
    def change(content):
        content["blocks"]["short"].update(
            title="Few labels, 10 %: so-so", found="It is\nbetter" + 8 * " and better"
        )

    lines = list(page(read_study(tmp_path, change), results, tmp_path))
    first = lines.index("## In short")
    entry = lines[first + 2 : lines.index("", first + 2)]
    assert entry[0].startswith("- [Few labels, 10 %: so-so](#few-labels-10--so-so): It is better")
    assert len(entry) == 2
    assert entry[1].startswith("  and ")
    assert " ".join(entry).count("better") == 9
    assert first < lines.index("## Few labels, 10 %: so-so")
    assert "## In short" not in page(study, results, tmp_path)


def test_findings_wait_for_results(tmp_path):
    study = read_study(tmp_path, lambda content: content["blocks"]["short"].update(found="Yes."))
    assert "## In short" not in page(study, Results(tmp_path / "nothing"), tmp_path)


def test_gains_against_the_length_of_the_pretraining(tmp_path, monkeypatch):
    def change(content):
        content["starts"]["cold"]["recipe_of"] = "aligndet"
        content["blocks"]["short"].update(
            starts=["backbone", "aligndet", "cold"], iterations=[10], figure="lengths"
        )

    study = read_study(tmp_path, change)
    results = Results(tmp_path / "results")
    tune(study, results, backbone=0.1, aligndet=0.2)
    gains = {"backbone": 0.0, "aligndet": 3.0, "cold": 1.0}
    steps = {"aligndet": 2000, "cold": 125}
    for cell in block_cells(study, results, study.blocks["short"]):
        score(results, cell, 10.0 + gains[cell.start] * cell.seed)
        if pretraining := study.pretraining_of(cell):
            config = {"schedule": {"iterations": steps[cell.start]}}
            run = {"config": config, "wall_seconds": 60.0, "device": "CPU", "torch": "2.11"}
            results.save(pretraining, run)
    drawn = []
    monkeypatch.setattr(Axes, "errorbar", lambda axis, *args, **options: drawn.append(args))
    assert "![Short schedules]" in "".join(page(study, Results(results.path), tmp_path))
    # Gains of 1, 2, 3 and 3, 6, 9; t(0.975, 2) = 4.3027 times 1 and 3, over the root of 3.
    assert drawn == [((125, 2000), (2.0, 6.0), pytest.approx((2.4841, 7.4524), abs=1e-3))]


@pytest.mark.parametrize(
    ("count", "shape"), [(1, (1, 1)), (3, (1, 3)), (4, (2, 2)), (5, (2, 3)), (8, (3, 3))]
)
def test_many_panels_have_several_rows(count, shape):
    figure, axes = subplots(count)
    assert axes[0].get_gridspec().get_geometry() == shape
    assert axes == figure.axes
    assert len(axes) == count
    pyplot.close(figure)


def test_no_picture_while_there_is_no_gain_to_show(study, results, tmp_path):
    for cell in block_cells(study, results, study.blocks["short"]):
        if cell.start == "aligndet":
            results.file(cell).unlink(missing_ok=True)
    lines = list(page(study, Results(results.path), tmp_path))
    assert "| s | fcos | 100 % | 10 | backbone only | 20.00 ± 10.00 |  | 3 | 60 |" in lines
    assert not any("![" in line for line in lines)
    assert not list(tmp_path.glob("*.png"))


def test_the_command_reports_what_there_is(results, tmp_path, capsys, monkeypatch):
    output = tmp_path / "docs/report.md"
    study = write_study(tmp_path, lambda content: content["blocks"]["short"].update(figure="gains"))
    monkeypatch.setattr("experiments.report.check", lambda *arguments: None)  # they have no config
    assert main([str(study)]) == 0
    first = output.read_text()
    assert f"Made by `python -m experiments.report {study}`; change that file" in first
    assert "+3.00 ± 2.48" in first
    assert (tmp_path / "docs/report/short.png").exists()
    nothing = str(tmp_path / "nothing")
    study = write_study(tmp_path, lambda content: content.update(results=nothing))
    assert main([str(study)]) == 0
    assert "Not run yet." in output.read_text()
    assert main([str(tmp_path / "no.yaml")]) == 1
    assert "no.yaml: cannot be read" in capsys.readouterr().err
    assert "Not run yet." in output.read_text()


def test_results_of_other_settings_are_refused(tmp_path, capsys):
    file = write_study(tmp_path)
    study, results = read_study(tmp_path), Results(tmp_path / "results")
    cell = study.tuning_cells("s", "fcos", "backbone")[0]
    config = resolved(study, Place(tmp_path, tmp_path / "runs"), cell)
    config["data"]["batch_size"] = 16
    results.save(cell, {"config": config, "init": None, "final": {"AP": 1.0}})
    assert main([str(file)]) == 1
    assert "(data.batch_size: 16 -> 2); restore the study" in capsys.readouterr().err


def test_runs_that_no_table_has_are_said(study, results, tmp_path):
    lines = list(page(study, results, tmp_path))
    assert "## Other runs" not in lines
    cell = block_cells(study, results, study.blocks["short"])[0]
    for seed, ap in ((8, 3.0), (9, 4.25)):
        score(results, replace(cell, iterations=77, seed=seed), ap)
    run = {"wall_seconds": 60.0, "device": "CPU", "torch": "2.11"}  # of no AP
    results.save(Pretraining("s", "fcos", "aligndet"), run)
    times = {"pretraining": 1.0, "finetuning": 1.0}
    write_json_atomic({"seconds": {"s": {"fcos": times}}}, results.path / "step_times.json")
    lines = list(page(study, Results(results.path), tmp_path))
    (line,) = lines[lines.index("| photographs | detector | start | run | AP of each seed |") + 2 :]
    expected = r"\| s \| fcos \| backbone only \| `.*_77steps_.*` \| 3\.00, 4\.25 \|"
    assert re.fullmatch(expected, line)
    # Before the recipes are chosen, it is not known which runs the tables will have.
    results.file(study.tuning_cells("s", "fcos", "aligndet")[0]).unlink()
    assert "## Other runs" not in page(study, Results(results.path), tmp_path)
