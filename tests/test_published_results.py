"""The pages and the README say what the committed results of the studies say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from experiments.configs import Place
from experiments.figures import FIGURES
from experiments.gains import wanted
from experiments.report import page
from experiments.results import Results
from experiments.runs import check
from experiments.study import Study

STUDIES = ("fair", "gains", "ideas", "masks")


def test_numbers_in_words_are_those_of_the_tables():
    root = Path(__file__).parents[1]
    study = Study.read(root / "experiments/gains.yaml")
    readme = (root / "README.md").read_text(encoding="utf-8")
    words = [study.text, readme.partition("## What it brings")[2].partition("\n## ")[0]]
    words += [text for block in study.blocks.values() for text in (block.text, block.found)]
    lines = (root / "docs/results_first_study.md").read_text(encoding="utf-8").splitlines()
    measured = "\n".join(line for line in lines if line.startswith(("| ", "- groceries, ")))
    numbers = re.findall(r"(?<![\d.])[\d,.]+ s\b|[+-]?\d+\.\d\d\b", " ".join(words))
    assert len(numbers) > 10
    assert [n for n in numbers if not re.search(rf"(?<![\d,]){re.escape(n)}(?!\d)", measured)] == []


@pytest.mark.parametrize("name", STUDIES)
def test_the_published_results_are_of_the_published_studies(monkeypatch, name):
    monkeypatch.chdir(Path(__file__).parents[1])
    """A default that changes what a run does has to be set in the file to what it was."""
    study = Study.read(f"experiments/{name}.yaml")
    results = Results(study.results)
    runs = wanted(study, results)
    assert len(runs) > 20
    check(study, Place(Path("DATA"), Path("RUNS")), runs, results)


@pytest.mark.parametrize("name", STUDIES)
def test_the_published_pages_say_what_the_results_say(monkeypatch, name):
    monkeypatch.chdir(Path(__file__).parents[1])
    monkeypatch.setattr("experiments.report.FIGURES", dict.fromkeys(FIGURES, lambda *_: None))
    study = Study.read(f"experiments/{name}.yaml")
    file = Path(study.page)
    folder = file.with_suffix("")
    published = file.read_text(encoding="utf-8")
    lines = page(study, Results(study.results), folder)
    assert published == "\n".join(lines) + "\n", f"run python -m experiments.report {study.file}"
    pictures = {f"{folder.name}/{file.name}" for file in folder.iterdir()}
    assert pictures == set(re.findall(rf"{folder.name}/\w+\.png", published))


def test_the_readme_says_what_the_results_say():
    root = Path(__file__).parents[1]
    published = (root / "docs/results_first_study.md").read_text(encoding="utf-8")
    readme = (root / "README.md").read_text(encoding="utf-8")
    line = r"^\| .*?, (\d+) steps \| ([\d.]+) \| ([\d.]+) \| (.* ± .*) \|$"
    rows = re.findall(line, readme, re.M)
    assert len(rows) == 3
    for steps, backbone, aligndet, gain in rows:
        assert re.search(rf"\| {steps} \| backbone only \| {backbone} ± ", published)
        aligndet = rf"\| {steps} \| AlignDet \| {aligndet} ± [\d.]+ \| {re.escape(gain)} "
        assert re.search(aligndet, published)
