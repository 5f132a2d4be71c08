"""The report of a study: from the JSON files of its runs to a page with tables and figures.

    python -m experiments.report experiments/fair.yaml

No number in its tables and lists is typed by hand; a test compares those in the study's text with
them.
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from data.counting import count
from data.json_files import open_atomic
from experiments.configs import Place
from experiments.convergence import convergence, time_counted
from experiments.figures import FIGURES
from experiments.gains import wanted
from experiments.markdown import anchor, table
from experiments.paired import mean_and_spread
from experiments.results import Results, block_cells
from experiments.rows import Row, mean_rows, recipe_in_words, rows_of, seconds_of
from experiments.runs import check
from experiments.study import OWN, Block, Cell, Study
from experiments.tuning_report import tuning_section
from experiments.unlisted import unlisted_section


def block_table(study: Study, results: Results, block: Block, rows: list[Row]) -> list[str]:
    """All rows of a block; with their seconds where schedules of different lengths are compared,
    and the choice of their recipes where there are several."""
    timed = len(block.iterations) > 1
    header = ["photographs", "detector", "labels", "steps"]
    header += ["recipe"] if len(block.recipes) > 1 else []
    header += ["start", block.measure, "gain", "seeds"]
    lines = []
    for row in rows:
        of = row.setting
        line = [of.data, of.detector, f"{of.percent:g} %", f"{row.iterations:,}"]
        line += [recipe_in_words(study, of.choice)] if len(block.recipes) > 1 else []
        line += [
            study.starts[row.start].title, mean_and_spread(list(row.scores.values())),
            "" if row.gain is None else str(row.gain), seeds_of(row),
        ]  # fmt: skip
        if timed:
            parts = seconds_of(study, results, row)
            line.append("" if parts is None else " + ".join(f"{part:,.0f}" for part in parts))
        lines.append(line)
    return table([*header, "seconds"] if timed else header, lines)


def seeds_of(row: Row) -> str:
    """How many seeds a row has; and its gain, if the first start has fewer."""
    if row.gain is None or row.gain.pairs == len(row.scores):
        return str(len(row.scores))
    return f"{len(row.scores)}, gain {row.gain.pairs}"


def mean_table(study: Study, block: Block, rows: list[Row]) -> Iterator[str]:
    """The means over the sets, if the block has several."""
    several, lengths = len(block.recipes) > 1, len(block.iterations) > 1
    header = ["detector", "labels", *(["of the steps"] if lengths else [])]
    header += [*(["recipe"] if several else []), "start", "mean gain", "seeds"]
    lines = [
        [
            of.detector,
            f"{of.percent:g} %",
            *([f"{100 * of.length / max(block.iterations):g} %"] if lengths else []),
            *([recipe_in_words(study, of.choice)] if several else []),
            study.starts[start].title,
            str(gain),
            str(gain.pairs),
        ]
        for of, start, gain in mean_rows(block, rows)
    ]
    if lines:
        yield from ("", f"In the mean over the {len(block.sets)} sets, seed by seed:", "")
        yield from table(header, lines)


def decision_table(study: Study, results: Results, rows: Iterable[tuple[Block, Row]]) -> list[str]:
    """What a user can decide by: minutes of the stages on one core, AP with and without."""
    header = ["photographs", "with labels", "objects", "detector", "pre-training", "fine-tuning"]
    lines = []
    for block, row in rows:
        place = (row.setting, block.starts[0])
        baseline = next(r for r in rows_of(study, results, block) if (r.setting, r.start) == place)
        cell = next(iter(row.cells.values()))
        measured = results.step_times(cell.data, cell.detector) is not None
        if not measured or study.pretraining_of(cell) is None:
            continue
        seen = results.get(cell)["labelled"]
        minutes = [f"{seconds / 60:.1f} min" for seconds in seconds_of(study, results, row)]
        lines.append([
            cell.data, f"{seen['photographs']:,}", f"{seen['objects']:,}", cell.detector, *minutes,
            mean_and_spread(list(baseline.scores.values())),
            mean_and_spread(list(row.scores.values())), str(row.gain),
        ])  # fmt: skip
    return table([*header, "AP without", "AP with", "gain"], lines) if lines else []


def versions(results: Results, cells: list[Cell]) -> Iterator[str]:
    """A remark if the runs were not all made with one version of torch."""
    used = sorted({result["torch"] for cell in cells if (result := results.get(cell))})
    if len(used) > 1:
        yield ""
        yield f"These runs were made with different versions of torch: {', '.join(used)}."


def cost_section(study: Study, results: Results, cells: list[Cell]) -> Iterator[str]:
    """How long the runs took, and where they ran."""
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


def interval_count(study: Study, rows_by_block: Mapping[str, list[Row]]) -> Iterator[str]:
    """How many intervals the tables show, and of how many comparisons; an entry of a list."""
    shown = []
    for name, rows in rows_by_block.items():
        baselines = {row.setting: row for row in reversed(rows) if row.gain is None}
        shown += [
            str((baselines[row.setting].cells, row.cells, row.gain))
            for row in rows
            if row.gain is not None and row.gain.half_width is not None
        ]
        means = mean_rows(study.blocks[name], rows)
        shown += [
            str((of, start, gain)) for of, start, gain in means if gain.half_width is not None
        ]
    if shown:
        text = (
            f"- **Many comparisons.** The tables show {count(len(shown), 'interval')}, of "
            f"{count(len(set(shown)), 'different comparison')}. None is corrected for their "
            "number: one 95 % interval in twenty misses the true mean."
        )
        yield from textwrap.wrap(text, 100, subsequent_indent="  ")


def in_short(study: Study, rows: Mapping[str, list[Row]]) -> Iterator[str]:
    """The findings: an entry for each block that has some and has rows, with a link to them."""
    for name, block in study.blocks.items():
        if block.found and rows[name]:
            entry = f"- [{block.title}](#{anchor(block.title)}): {' '.join(block.found.split())}"
            yield from textwrap.wrap(
                entry, 100, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
            )


def page(study: Study, results: Results, pictures: Path) -> Iterator[str]:
    """The report, line by line; draws its figures into `pictures`."""
    yield f"# {study.title}"
    yield ""
    yield f"Made by `python -m experiments.report {study.file}`; change that file, not this page."
    yield ""
    yield study.text.strip()
    rows_by_block = {n: rows_of(study, results, block) for n, block in study.blocks.items()}
    yield from interval_count(study, rows_by_block)
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
        yield from mean_table(study, block, rows)
        yield from versions(results, cells)
        if len(block.iterations) > 1:
            yield from ("", *convergence(study, block, rows))
            yield from time_counted(study, results, block, rows)
        if block.figure and any(row.gain is not None for row in rows):
            picture = pictures / f"{name}.png"
            FIGURES[block.figure](study, results, block, rows, picture)
            yield from ("", f"![{block.title}]({pictures.name}/{picture.name})")
    decisive = [
        (block, row)
        for name, block in study.blocks.items()
        for row in rows_by_block[name]
        if block.decide and row.gain is not None and row.setting.choice == OWN
    ]
    if lines := decision_table(study, results, decisive):
        yield from ("", "## What it costs, and what it brings", "")
        yield (
            "Minutes are on one core of the machine, by the measured time of a step. Each start "
            "has its own recipe."
        )
        yield from ("", *lines)
    yield ""
    yield from tuning_section(study, results)
    yield ""
    yield from cost_section(study, results, list(dict.fromkeys(every)))
    yield from unlisted_section(study, results)


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="Render the results of a study.")
    parser.add_argument("study", metavar="FILE", help="the study's YAML")
    options = parser.parse_args(arguments)
    try:
        study = Study.read(options.study)
        results = Results(study.results)
        check(study, Place(Path("DATA"), Path("RUNS")), wanted(study, results), results)
        output = Path(study.page)
        pictures = output.with_suffix("")
        pictures.mkdir(parents=True, exist_ok=True)
        text = "\n".join(page(study, results, pictures)) + "\n"
        with open_atomic(output) as file:
            file.write(text)
    except ValueError as error:  # a DataError, or a wrong key in a config
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
