"""How soon one start is as good as another, in steps and in seconds, as lines of the report."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from statistics import mean
from typing import NamedTuple

from experiments.results import Results
from experiments.rows import Row, Setting, recipe_in_words, seconds_of
from experiments.study import Block, Study


def convergence(study: Study, block: Block, rows: list[Row]) -> Iterator[str]:
    """After how many fine-tuning steps each start reaches the final AP of the block's first one."""
    for setting in dict.fromkeys(row.lengths_apart for row in rows):
        first, *others = block.starts
        mine = [row for row in rows if row.lengths_apart == setting]
        for start in others:
            pair = [row for row in mine if row.start in (first, start)]
            runs = mean_scores(pair)
            if len(runs.get(first, ())) < 2 or start not in runs:
                continue
            longest = max(runs[first])
            goal = runs[first][longest]
            of = f"the {goal:.2f} of {study.starts[first].title} with {longest:,} fine-tuning steps"
            what = f"- {place(study, block, setting)}: {study.starts[start].title}"
            steps = steps_to_reach(goal, runs[start])
            share = f"{100 * (steps or 0) / longest:.0f} %"
            if steps is None:
                yield f"{what} does not reach {of}."
            elif steps == min(runs[start]):
                yield f"{what} reaches {of} in at most {share} of them."
            else:
                yield f"{what} reaches {of} in {share} of them (interpolated)."


def mean_scores(rows: list[Row]) -> dict[str, dict[int, float]]:
    """AP by start and length, in the mean over the seeds that all rows have; empty if there are
    none."""
    seeds = set.intersection(*(set(row.scores) for row in rows)) if rows else set()
    found: dict[str, dict[int, float]] = {}
    for row in rows if seeds else ():
        found.setdefault(row.start, {})[row.iterations] = mean(row.scores[s] for s in seeds)
    return found


def place(study: Study, block: Block, setting: Setting) -> str:
    """A setting in words; the choice of recipes only where there are several."""
    parts = [setting.data, setting.detector]
    parts += [recipe_in_words(study, setting.choice)] if len(block.recipes) > 1 else []
    return ", ".join(parts)


def steps_to_reach(goal: float, runs: Mapping[int, float]) -> float | None:
    """The length of a schedule after which AP is `goal`, interpolated linearly between two.

    Args:
        goal: AP.
        runs: AP of the schedules that were run, by their length.

    Returns:
        The shortest length if its AP is already that high; None if no schedule reaches it.
    """
    points = sorted(runs.items())
    if points[0][1] >= goal:
        return points[0][0]
    for (shorter, below), (longer, above) in itertools.pairwise(points):
        if above >= goal:
            return shorter + (longer - shorter) * (goal - below) / (above - below)
    return None


class Timed(NamedTuple):
    """AP of a schedule, and how long it took, pre-training included."""

    iterations: int
    ap: float
    seconds: float


def time_counted(study: Study, results: Results, block: Block, rows: list[Row]) -> Iterator[str]:
    """What the other starts are worth if the time of their pre-training counts too."""
    first, *others = block.starts
    for setting in dict.fromkeys(row.lengths_apart for row in rows):
        timed: dict[str, list[Timed]] = {}
        for row in (row for row in rows if row.lengths_apart == setting):
            if parts := seconds_of(study, results, row):
                point = Timed(row.iterations, mean(row.scores.values()), sum(parts))
                timed.setdefault(row.start, []).append(point)
        for other in (start for start in others if timed.keys() >= {first, start}):
            titles = study.starts[first].title, study.starts[other].title
            said = which_is_quicker(*titles, timed[first], timed[other])
            yield f"- {place(study, block, setting)}, pre-training counted: {said}"


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
            f"{other_name} takes longer for no higher AP with {' and '.join(steps)}."
        )
    longest = f"{max(point.seconds for point in points):,.0f} s"
    shortest = f"{min(point.seconds for point in other_points):,.0f} s"
    if all(p.seconds > q.seconds for p in other_points for q in points):
        return f"{other_name} takes {shortest} or more; {name} was given {longest} at most."
    return f"No schedule of {name} is both quicker than {other_name} and as good."
