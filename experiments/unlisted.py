"""Results that no table of a study shows, since its settings have changed after they were made.

They stay: whoever reads the tables should know what else the test photographs were used for.
"""

from __future__ import annotations

from collections.abc import Iterator

from data.json_files import read_json
from experiments.markdown import table
from experiments.results import Results, all_cells, tuned_recipe
from experiments.study import COMMON, Study


def unlisted(study: Study, results: Results) -> dict[str, list[float]]:
    """AP in percent of the seeds of each fine-tuning that no block and no tuning names, by its
    name without the seed."""
    listed = {cell.name for cell in all_cells(study, results)}
    found: dict[str, list[float]] = {}
    for file in sorted(results.path.rglob("*.json")):
        name = file.relative_to(results.path).as_posix().removesuffix(".json")
        if name in listed or name.count("/") != 3 or not decided(study, results, name):
            continue
        content = read_json(file)
        if "final" in content:
            run = name.rpartition("_seed")[0]
            found.setdefault(run, []).append(content["final"]["AP"] or 0.0)
    return found


def decided(study: Study, results: Results, name: str) -> bool:
    """Whether the recipes are chosen that decide which runs of the same set and detector the blocks
    name."""
    data, detector, *_ = name.split("/")
    if data not in study.sets or detector not in study.tuning.detectors:
        return True
    place = study.recipe_place(data, COMMON)
    return tuned_recipe(study, results, detector, *place) is not None


def unlisted_section(study: Study, results: Results) -> Iterator[str]:
    """The runs, as lines of the report; nothing if there are none."""
    found = unlisted(study, results)
    if not found:
        return
    yield ""
    yield "## Other runs"
    yield ""
    yield (
        "Made before the recipes or settings were changed; no table above has them. Runs on `tune` "
        "are scored on the photographs that are put aside, the others on the test photographs."
    )
    yield ""
    lines = []
    for run, scores in found.items():
        data, detector, start, rest = run.split("/")
        title = study.starts[start].title if start in study.starts else start
        aps = ", ".join(f"{score:.2f}" for score in scores)
        lines.append([data, detector, title, f"`{rest}`", aps])
    yield from table(["photographs", "detector", "start", "run", "AP of each seed"], lines)
