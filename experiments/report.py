"""The report of a study: from the JSON files of its runs to a page with tables and figures.

    python -m experiments.report

No number in its tables and lists is typed by hand; a test holds those in the study's words to them.
"""

from __future__ import annotations

import argparse
import itertools
import re
import sys
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import mean, median
from typing import NamedTuple

from data.errors import DataError
from data.json_files import open_atomic
from experiments.figures import FIGURES
from experiments.paired import Gain, mean_and_spread, paired_gain
from experiments.results import Recipe, Results, block_cells, tuned_recipe
from experiments.study import Block, Cell, Study, value_text


class Row(NamedTuple):
    """One start in one setting of a block, over its seeds."""

    data: str
    detector: str
    percent: float
    iterations: int
    start: str
    recipe: Recipe
    scores: dict[int, float]  # AP of each seed, in percent
    gain: Gain | None  # over the block's first start; None for that start itself


def rows_of(study: Study, results: Results, block: Block) -> list[Row]:
    """The rows of a block that have results; gains over the seeds that both starts have."""
    groups: dict[tuple, dict[int, float]] = {}
    for cell in block_cells(study, results, block):
        score = results.final_ap(cell)
        if score is not None:
            setting = (cell.data, cell.detector, cell.percent, cell.iterations)
            groups.setdefault((*setting, cell.start, cell.recipe), {})[cell.seed] = score
    baselines = {key[:4]: scores for key, scores in groups.items() if key[4] == block.starts[0]}
    rows = []
    for key, scores in groups.items():
        gain = None
        common = sorted(scores.keys() & baselines.get(key[:4], {}).keys())
        if key[4] != block.starts[0] and common:
            gain = paired_gain([baselines[key[:4]][s] for s in common], [scores[s] for s in common])
        rows.append(Row(*key, scores, gain))
    return rows


def table(header: list[str], lines: list[list[str]]) -> list[str]:
    """A Markdown table."""
    rule = ["---"] * len(header)
    return [f"| {' | '.join(cells)} |" for cells in (header, rule, *lines)]


def block_table(study: Study, results: Results, block: Block, rows: list[Row]) -> list[str]:
    """All rows of a block; with their seconds where schedules of different lengths are compared."""
    timed = len(block.iterations) > 1
    header = ["photographs", "detector", "labels", "steps", "start", "AP", "gain", "seeds"]
    lines = []
    for row in rows:
        line = [
            row.data, row.detector, f"{row.percent:g} %", f"{row.iterations:,}",
            study.starts[row.start].title, mean_and_spread(list(row.scores.values())),
            "" if row.gain is None else str(row.gain), str(len(row.scores)),
        ]  # fmt: skip
        if timed:
            parts = seconds_of(study, results, row)
            line.append("" if parts is None else " + ".join(f"{part:,.0f}" for part in parts))
        lines.append(line)
    return table([*header, "seconds"] if timed else header, lines)


def seconds_of(study: Study, results: Results, row: Row) -> list[float] | None:
    """Wall time of the pre-training, if there is one, and of fine-tuning (median of the seeds);
    None if the pre-training has no result."""
    pretraining = study.pretraining_of_start(row.data, row.detector, row.start)
    if pretraining is not None and results.get(pretraining) is None:
        return None
    cells = [Cell(row.data, row.detector, row.start, *row[2:4], row.recipe, s) for s in row.scores]
    before = [] if pretraining is None else [results.get(pretraining)["wall_seconds"]]
    return [*before, median(results.get(cell)["wall_seconds"] for cell in cells)]


def versions(results: Results, cells: list[Cell]) -> Iterator[str]:
    """A remark if the runs were not all made with one version of torch."""
    used = sorted({result["torch"] for cell in cells if (result := results.get(cell))})
    if len(used) > 1:
        yield ""
        yield f"These runs were made with different versions of torch: {', '.join(used)}."


def convergence(study: Study, block: Block, rows: list[Row]) -> Iterator[str]:
    """After how many fine-tuning steps each start reaches the final AP of the block's first one."""
    settings = dict.fromkeys((row.data, row.detector, row.percent) for row in rows)
    for setting in settings:
        runs = {
            start: {r.iterations: mean(r.scores.values())
                    for r in rows if r[:3] == setting and r.start == start}
            for start in block.starts
        }  # fmt: skip
        first, *others = block.starts
        if len(runs[first]) < 2:
            continue
        longest = max(runs[first])
        goal = runs[first][longest]
        of = f"the {goal:.2f} of {study.starts[first].title} with {longest:,} fine-tuning steps"
        for start in (other for other in others if runs[other]):
            what = f"- {setting[0]}, {setting[1]}: {study.starts[start].title}"
            steps = steps_to_reach(goal, runs[start])
            share = f"{100 * (steps or 0) / longest:.0f} %"
            if steps is None:
                yield f"{what} does not reach {of}."
            elif steps == min(runs[start]):
                yield f"{what} reaches {of} in at most {share} of them."
            else:
                yield f"{what} reaches {of} in {share} of them (interpolated)."


def steps_to_reach(goal: float, runs: Mapping[int, float]) -> float | None:
    """The length of a schedule after which AP is ``goal``, interpolated linearly between two.

    Args:
        goal: AP.
        runs: AP of the schedules that were run, by their length.

    Returns:
        The shortest length if its AP is no less; None if no schedule has as much.
    """
    points = sorted(runs.items())
    if points[0][1] >= goal:
        return points[0][0]
    for (shorter, below), (longer, above) in itertools.pairwise(points):
        if above >= goal:
            return shorter + (longer - shorter) * (goal - below) / (above - below)
    return None


class Timed(NamedTuple):
    """AP of a schedule, and how long it took with the pre-training."""

    iterations: int
    ap: float
    seconds: float


def time_counted(study: Study, results: Results, block: Block, rows: list[Row]) -> Iterator[str]:
    """What the other starts are worth if the time of their pre-training counts too."""
    first, *others = block.starts
    for setting in dict.fromkeys((row.data, row.detector, row.percent) for row in rows):
        timed: dict[str, list[Timed]] = {}
        for row in (row for row in rows if row[:3] == setting):
            if parts := seconds_of(study, results, row):
                point = Timed(row.iterations, mean(row.scores.values()), sum(parts))
                timed.setdefault(row.start, []).append(point)
        for other in (start for start in others if timed.keys() >= {first, start}):
            titles = study.starts[first].title, study.starts[other].title
            said = which_is_quicker(*titles, timed[first], timed[other])
            yield f"- {setting[0]}, {setting[1]}, pre-training counted: {said}"


def which_is_quicker(
    name: str, other_name: str, points: list[Timed], other_points: list[Timed]
) -> str:
    """A start without pre-training against one with it, in words."""
    beaten_by = {
        point: [p for p in other_points if p.seconds > point.seconds and p.ap <= point.ap]
        for point in points
    }
    best = max(points, key=lambda point: (len(beaten_by[point]), point.ap))
    if beaten := beaten_by[best]:
        steps = [f"{p.iterations:,} steps ({p.ap:.2f} after {p.seconds:,.0f} s)" for p in beaten]
        return (
            f"{name} with {best.iterations:,} steps has {best.ap:.2f} after {best.seconds:,.0f} s. "
            f"{other_name} takes longer for no more with {' and '.join(steps)}."
        )
    longest = f"{max(point.seconds for point in points):,.0f} s"
    shortest = f"{min(point.seconds for point in other_points):,.0f} s"
    if all(p.seconds > q.seconds for p in other_points for q in points):
        return f"{other_name} takes {shortest} or more, {name} was given {longest} at most."
    return f"{name} is nowhere both quicker than {other_name} and as good."


def tuning_section(study: Study, results: Results) -> Iterator[str]:
    """AP with every recipe, and what was chosen; a table for the detectors of the same recipes."""
    tuning = study.tuning
    keys = ", ".join(f"`{key}`" for key in tuning.recipes[0])
    yield "## The recipes"
    yield ""
    yield (
        f"AP after {tuning.iterations:,} steps with {tuning.percent:g} % of the labels, seed "
        f"{tuning.seed}, which is not in any other table. The columns are {keys}. The best of a "
        "row, in bold, is the recipe of that start everywhere else."
    )
    groups: dict[str, list[str]] = {}
    for detector in tuning.detectors:
        groups.setdefault(str(tuning.recipes_for(detector)), []).append(detector)
    for detectors in groups.values():
        yield ""
        yield from tuning_table(study, results, detectors)


def tuning_table(study: Study, results: Results, detectors: list[str]) -> list[str]:
    """The starts of detectors that have the same recipes."""
    tuning = study.tuning
    recipes = tuning.recipes_for(detectors[0])
    columns = [", ".join(value_text(v) for v in recipe.values()) for recipe in recipes]
    lines = []
    for detector, data, start in itertools.product(detectors, tuning.sets, tuning.starts):
        cells = study.tuning_cells(data, detector, start)
        scores = [results.final_ap(cell) for cell in cells]
        best = tuned_recipe(study, results, detector, data, start)
        texts = ["" if s is None else f"{s:.2f}" for s in scores]
        marked = [f"**{t}**" if c.recipe == best else t for t, c in zip(texts, cells, strict=True)]
        lines.append([data, detector, study.starts[start].title, *marked])
        if start == tuning.starts[0]:
            baseline = scores
        elif None not in baseline + scores:
            gains = [f"{s - b:+.2f}" for s, b in zip(scores, baseline, strict=True)]
            lines.append([data, detector, "gain with the same recipe", *gains])
    return table(["photographs", "detector", "start", *columns], lines)


def cost_section(study: Study, results: Results, cells: list[Cell]) -> Iterator[str]:
    """What the runs took, and where they ran."""
    done = [(cell, results.get(cell)) for cell in cells if results.get(cell)]
    needed = dict.fromkeys(p for cell, _ in done if (p := study.pretraining_of(cell)))
    lines = []
    for kind, runs in (
        ("pre-training", [results.get(p) for p in needed if results.get(p)]),
        ("fine-tuning", [result for _, result in done]),
    ):
        minutes = sorted(run["wall_seconds"] / 60 for run in runs)
        if minutes:
            middle, total = minutes[len(minutes) // 2], sum(minutes) / 60
            lines.append(
                [kind, str(len(runs)), f"{middle:.1f}", f"{minutes[-1]:.1f}", f"{total:.1f}",
                 "; ".join(sorted({f"{run['device']}, torch {run['torch']}" for run in runs}))]
            )  # fmt: skip
    yield "## What it took"
    yield ""
    header = ["runs", "number", "minutes, median", "longest", "hours, all", "on"]
    yield from table(header, lines)


def interval_count(rows_by_block: Mapping[str, list[Row]]) -> Iterator[str]:
    """How many intervals the tables show, and of how many comparisons; an entry of a list."""
    shown = []
    for rows in rows_by_block.values():
        baselines = {row[:4]: row for row in reversed(rows) if row.gain is None}
        shown += [
            str((baselines[row[:4]][:6], row[:6], row.gain))
            for row in rows
            if row.gain is not None and row.gain.half_width is not None
        ]
    if shown:
        text = (
            f"- **Many comparisons.** The tables show {len(shown)} intervals, of {len(set(shown))} "
            "different comparisons. None is corrected for their number: one 95 % interval in "
            "twenty misses the true mean."
        )
        yield from textwrap.wrap(text, 100, subsequent_indent="  ")


def in_short(study: Study, rows: Mapping[str, list[Row]]) -> Iterator[str]:
    """What came out, an entry for each block that says so and has rows, with a link to them."""
    for name, block in study.blocks.items():
        if block.found and rows[name]:
            entry = f"- [{block.title}](#{anchor(block.title)}): {' '.join(block.found.split())}"
            yield from textwrap.wrap(
                entry, 100, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
            )


def anchor(heading: str) -> str:
    """What Markdown's readers make of a heading to link to it."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def page(study: Study, results: Results, pictures: Path) -> Iterator[str]:
    """The report, line by line; draws its figures into ``pictures``."""
    yield f"# {study.title}"
    yield ""
    yield "Made by `python -m experiments.report`; change `experiments/`, not this page."
    yield ""
    yield study.text.strip()
    rows_by_block = {n: rows_of(study, results, block) for n, block in study.blocks.items()}
    yield from interval_count(rows_by_block)
    if lines := list(in_short(study, rows_by_block)):
        yield from ("", "## In short", "", *lines)
    every: list[Cell] = list(study.all_tuning_cells())
    for name, block in study.blocks.items():
        rows = rows_by_block[name]
        cells = block_cells(study, results, block)
        every += cells
        yield from ("", f"## {block.title}", "")
        if block.text:
            yield from (block.text.strip(), "")
        if not rows:
            yield "Not run yet."
            continue
        yield from block_table(study, results, block, rows)
        yield from versions(results, cells)
        if len(block.iterations) > 1:
            yield from ("", *convergence(study, block, rows))
            yield from time_counted(study, results, block, rows)
        if block.figure and any(row.gain is not None for row in rows):
            picture = pictures / f"{name}.png"
            FIGURES[block.figure](study, results, block, rows, picture)
            yield from ("", f"![{block.title}]({pictures.name}/{picture.name})")
    yield ""
    yield from tuning_section(study, results)
    yield ""
    yield from cost_section(study, results, list(dict.fromkeys(every)))


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="Render the results of a study.")
    parser.add_argument("--study", default="experiments/gains.yaml", metavar="FILE")
    parser.add_argument("--results", default="experiments/results", metavar="DIR")
    parser.add_argument("--output", default="docs/results.md", metavar="FILE")
    options = parser.parse_args(arguments)
    output = Path(options.output)
    pictures = output.with_suffix("")
    try:
        study, results = Study.read(options.study), Results(options.results)
        pictures.mkdir(parents=True, exist_ok=True)
        text = "\n".join(page(study, results, pictures)) + "\n"
        with open_atomic(output) as file:
            file.write(text)
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
