"""The recipes of a study, as a section of its report: AP with each, and which was chosen."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from experiments.markdown import table
from experiments.results import Results, tuned_recipe
from experiments.study import COMMON, Cell, Study, value_text


def tuning_section(study: Study, results: Results) -> Iterator[str]:
    """AP with every recipe, and what was chosen; detectors with the same recipes share a table."""
    tuning = study.tuning
    keys = ", ".join(f"`{key}`" for key in tuning.recipes[0])
    steps = sorted({study.steps(data, tuning.iterations) for data in tuning.sets})
    lengths = " or ".join(f"{count:,}" for count in steps)
    also = any(
        tuning.seed in block.seeds and block.split == tuning.split
        for block in study.blocks.values()
    )
    where = "as in tables above" if also else "which is in no other table"
    if tuning.split == "tune":
        where += ", on the part of the training photographs that is put aside for choices"
    best = "The best of a row, in bold, is that start's own recipe"
    if has_common(study):
        best += "; the best mean of the starts is the same recipe for all"
    yield "## The recipes"
    yield ""
    yield (
        f"AP after {lengths} steps with {tuning.percent:g} % of the labels, seed {tuning.seed}, "
        f"{where}. The columns are {keys}. {best}."
    )
    groups: dict[str, list[str]] = {}
    for detector in tuning.detectors:
        groups.setdefault(str(tuning.recipes_for(detector)), []).append(detector)
    for detectors in groups.values():
        yield ""
        yield from tuning_table(study, results, detectors)


def has_common(study: Study) -> bool:
    """Whether a block has one recipe for all of its starts, the best of their mean."""
    return any(COMMON in block.recipes for block in study.blocks.values())


def tuning_table(study: Study, results: Results, detectors: list[str]) -> list[str]:
    """The starts of detectors that have the same recipes."""
    recipes = study.tuning.recipes_for(detectors[0])
    columns = [", ".join(value_text(v) for v in recipe.values()) for recipe in recipes]
    lines: list[list[str]] = []
    for detector, data in itertools.product(detectors, study.tuning.sets):
        lines += rows_of_set(study, results, detector, data)
    return table(["photographs", "detector", "start", *columns], lines)


def rows_of_set(study: Study, results: Results, detector: str, data: str) -> Iterator[list[str]]:
    """A row for each start with its gain over the first, then their mean if a block needs it."""
    starts = study.tuning.starts
    cells = {start: study.tuning_cells(data, detector, start) for start in starts}
    scores = {start: [results.final_ap(cell) for cell in cells[start]] for start in starts}
    for start in starts:
        best = tuned_recipe(study, results, detector, data, start)
        texts = marked(scores[start], cells[start], best)
        yield [data, detector, study.starts[start].title, *texts]
        if start != starts[0] and None not in scores[start] + scores[starts[0]]:
            pairs = zip(scores[start], scores[starts[0]], strict=True)
            gains = [f"{score - before:+.2f}" for score, before in pairs]
            yield [data, detector, "gain with the same recipe", *gains]
    if has_common(study) and None not in itertools.chain(*scores.values()):
        means = [sum(of) / len(of) for of in zip(*scores.values(), strict=True)]
        best = tuned_recipe(study, results, detector, data, COMMON)
        yield [data, detector, "mean of the starts", *marked(means, cells[starts[0]], best)]


def marked(scores: list[float | None], cells: list[Cell], best: object) -> list[str]:
    """Scores as texts, that of the best recipe in bold, empty where there is none yet."""
    texts = ["" if score is None else f"{score:.2f}" for score in scores]
    return [f"**{t}**" if c.recipe == best else t for t, c in zip(texts, cells, strict=True)]
