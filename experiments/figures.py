"""The figures of a study's report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil
from pathlib import Path
from statistics import mean, stdev

import matplotlib

from experiments.results import Results
from experiments.rows import Row, recipe_in_words
from experiments.study import Block, Study

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402  (after the choice of a backend without a window)
from matplotlib.axes import Axes  # noqa: E402

DPI = 130


def curves(
    study: Study, results: Results, block: Block, rows: Sequence[Row], picture: Path
) -> None:
    """AP against iterations, one panel per set and detector. Dots are complete schedules (mean
    and standard deviation over seeds), thin lines the evaluations during the longest one."""
    panels = list(dict.fromkeys(_panel(study, block, row) for row in rows))
    figure, axes = subplots(len(panels))
    for axis, panel in zip(axes, panels, strict=True):
        for number, start in enumerate(block.starts):
            colour = f"C{number}"
            mine = sorted(
                (row for row in rows if _panel(study, block, row) == panel and row.start == start),
                key=lambda row: row.iterations,
            )
            if not mine:
                continue
            steps = [row.iterations for row in mine]
            heights = [mean(row.scores.values()) for row in mine]
            errors = [_spread(list(row.scores.values())) for row in mine]
            axis.errorbar(steps, heights, errors, fmt="o-", color=colour, capsize=3,
                          label=study.starts[start].title)  # fmt: skip
            _way_there(results, mine[-1], axis, colour)
        axis.set(title=" ".join(panel), xlabel="steps of the schedule")
        axis.set_ylabel("AP (bars: standard deviation)")
        axis.set(xlim=(0, None), ylim=(0, None))
        axis.grid(alpha=0.3)
    axes[0].legend()
    _save(figure, picture)


def _way_there(results: Results, row: Row, axis: Axes, colour: str) -> None:
    for cell in row.cells.values():
        points = [(point["step"], point["AP"] or 0.0) for point in results.get(cell)["curve"]]
        axis.plot(*zip(*points, strict=True), color=colour, alpha=0.35, linewidth=0.8)


def gains(study: Study, results: Results, block: Block, rows: Sequence[Row], picture: Path) -> None:
    """Gain over the block's first start, with 95 % intervals; one panel per data set, all with the
    same scale. Gains of a single seed, which have no interval, are hollow."""
    rows = [row for row in rows if row.gain is not None]
    panels = list(dict.fromkeys(row.setting.data for row in rows))
    most = max(sum(row.setting.data == panel for row in rows) for panel in panels)
    figure, axes = subplots(len(panels), width=6.4, height=1.3 + 0.32 * most)
    for axis, panel in zip(axes, panels, strict=True):
        mine = [row for row in rows if row.setting.data == panel]
        for place, row in enumerate(mine):
            inside = "none" if row.gain.half_width is None else "C1"
            axis.errorbar(row.gain.mean, place, xerr=row.gain.half_width, fmt="o", color="C1",
                          mfc=inside, capsize=3)  # fmt: skip
        axis.set_yticks(range(len(mine)), [_name(study, block, row) for row in mine])
        axis.set_ylim(len(mine) - 0.5, -0.5)
        axis.axvline(0.0, color="black", linewidth=0.8)
        baseline = study.starts[block.starts[0]].title
        axis.set(title=panel, xlabel=f"gain in {block.measure} over {baseline}, {_bars(rows)}")
        axis.grid(alpha=0.3, axis="x")
    ends = [end for axis in axes for end in axis.get_xlim()]
    for axis in axes:
        axis.set_xlim(min(ends), max(ends))
    _save(figure, picture)


def _bars(rows: Sequence[Row]) -> str:
    """What the bars of gains are, in words."""
    alone = {row.gain.half_width is None for row in rows}
    if alone == {True}:
        return "one seed"
    return "95 % interval" + (" (hollow: one seed)" if True in alone else "")


def lengths(
    study: Study, results: Results, block: Block, rows: Sequence[Row], picture: Path
) -> None:
    """Gain over the block's first start, with 95 % intervals, against the steps of pre-training;
    one panel per set and detector."""
    rows = [row for row in rows if row.gain is not None]
    panels = list(dict.fromkeys(_panel(study, block, row) for row in rows))
    figure, axes = subplots(len(panels))
    for axis, panel in zip(axes, panels, strict=True):
        points = sorted(
            (_pretraining_steps(study, results, row), row.gain.mean, row.gain.half_width or 0.0)
            for row in rows
            if _panel(study, block, row) == panel
        )
        steps, heights, errors = zip(*points, strict=True)
        axis.errorbar(steps, heights, errors, fmt="o-", color="C1", capsize=3)
        axis.axhline(0.0, color="black", linewidth=0.8)
        axis.set_xscale("log")
        axis.set_xticks(steps, [f"{count:,}" for count in steps])
        axis.minorticks_off()
        baseline = study.starts[block.starts[0]].title
        axis.set(title=" ".join(panel), xlabel="steps of pre-training")
        axis.set_ylabel(f"gain in {block.measure} over {baseline}, {_bars(rows)}")
        axis.grid(alpha=0.3)
    _save(figure, picture)


def _pretraining_steps(study: Study, results: Results, row: Row) -> int:
    pretraining = study.pretraining_of(next(iter(row.cells.values())))
    return results.get(pretraining)["config"]["schedule"]["iterations"]


def _panel(study: Study, block: Block, row: Row) -> tuple[str, ...]:
    """What the rows of a panel have in common."""
    of = row.setting
    choice = (recipe_in_words(study, of.choice),) if len(block.recipes) > 1 else ()
    return (of.data, of.detector, *choice)


def _name(study: Study, block: Block, row: Row) -> str:
    """What distinguishes a row from the others of its block."""
    of = row.setting
    parts = [of.detector] if len(block.detectors) > 1 else []
    parts += [study.starts[row.start].title] if len(block.starts) > 2 else []
    parts += [f"{of.percent:g} %"] if len(block.percents) > 1 else []
    parts += [f"{row.iterations:,} steps"] if len(block.iterations) > 1 else []
    parts += [recipe_in_words(study, of.choice)] if len(block.recipes) > 1 else []
    return ", ".join(parts) or study.starts[row.start].title


def subplots(
    count: int, width: float = 4.6, height: float = 3.6
) -> tuple[pyplot.Figure, list[Axes]]:
    """Axes for `count` panels, in as few rows of at most three as they fit into."""
    rows = ceil(count / 3)
    columns = ceil(count / rows)
    size = (width * columns, height * rows)
    figure, grid = pyplot.subplots(rows, columns, figsize=size, squeeze=False)
    axes = list(grid.flat)
    for unused in axes[count:]:
        unused.remove()
    return figure, axes[:count]


def _spread(values: Sequence[float]) -> float:
    return stdev(values) if len(values) > 1 else 0.0


def _save(figure: pyplot.Figure, picture: Path) -> None:
    figure.tight_layout()
    figure.savefig(picture, dpi=DPI)
    pyplot.close(figure)


FIGURES: dict[str, Callable[..., None]] = {"curves": curves, "gains": gains, "lengths": lengths}
