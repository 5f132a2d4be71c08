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
    about = readme.partition("## What it brings")[2].partition("\n## ")[0]
    words = [study.text, re.sub(r"(?m)^\|.*$", "", about)]  # its table has a test of its own
    words += [text for block in study.blocks.values() for text in (block.text, block.found)]
    lines = (root / "docs/results_first_study.md").read_text(encoding="utf-8").splitlines()
    measured = "\n".join(line for line in lines if line.startswith(("| ", "- groceries, ")))
    numbers = re.findall(r"(?<![\d.])[\d,.]+ s\b|[+-]?\d+\.\d\d\b", " ".join(words))
    assert len(numbers) > 10
    assert [n for n in numbers if not re.search(rf"(?<![\d,]){re.escape(n)}(?!\d)", measured)] == []


@pytest.mark.parametrize("name", STUDIES)
def test_the_published_results_are_of_the_published_studies(monkeypatch, name):
    """A default that changes what a run does has to be set in the file to what it was."""
    monkeypatch.chdir(Path(__file__).parents[1])
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
    published = (root / "docs/results.md").read_text(encoding="utf-8")
    readme = (root / "README.md").read_text(encoding="utf-8")
    table = re.findall(r"^\| FCOS on (?:.*\n)+?\n", readme, re.M)[0].strip().splitlines()[2:]
    sets = {"supermarket shelves": "groceries", "fish tanks": "aquarium",
            "scenes of COCO": "coco-mini", "cells under the microscope": "nuclei"}  # fmt: skip
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    assert [row[0] for row in rows] == list(sets)
    for of, images, backbone, aligndet, gain, same in rows:
        name = sets[of]
        assert f"\n| {name} | {of} | {images} | " in published

        def row(choice, start, name=name):
            line = rf"\| {name} \| fcos \| 100 % \| \d+ \| {choice} \| {start} \|"
            line += r" (.*?) ± .*? \| (.*?) \|"
            return re.search(line, published).groups()

        assert row("own recipe", "backbone only") == (backbone, "")
        assert row("own recipe", "AlignDet") == (aligndet, gain)
        assert row("recipe of backbone only", "AlignDet")[1] == same
    for claim in re.findall(r"- .*, fcos: AlignDet reaches .*", published):
        assert "in at most 50 %" in claim  # as the README says
