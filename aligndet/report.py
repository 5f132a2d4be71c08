"""One page about runs: what came out, what differed, whether pre-training went well, pictures.

    python -m aligndet.report RUN [RUN ...] [--pretrain RUN] --output report.html

Runs of fine-tuning that differ in nothing but the seed belong together. The file needs no network
and no script. Every number on it stands in a file of a run.
"""

from __future__ import annotations

import argparse
import html
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, TypeAlias

from aligndet import cli
from aligndet.charts import STYLE, Line, line_chart, sparkline
from aligndet.markup import Markup, figure, kept_together, table, value
from aligndet.precision_curves import precision_curves
from aligndet.reading_curves import readings, warnings_of
from aligndet.report_errors import errors_section
from aligndet.report_pictures import Validation, by_image, f1, most_telling, picture
from aligndet.report_proposals import proposals_section
from aligndet.run_files import MOST_BYTES, SEED_KEYS, RunFiles
from aligndet.verdict import Group, groups_of, sentence, told_apart
from data.atomic_files import open_atomic
from data.coco_json import load_coco
from data.errors import DataError
from data.plain_text import say

Labels: TypeAlias = "Mapping[str, Mapping[str, Any]]"  # dicts of `load_coco`, by their file
SCORES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "segm_AP")
REPORT = "report.html"
EACH = 9  # pictures of a kind, of all starts and the labels together
MOST_TO_SCORE = 100_000  # images times classes: about ten seconds
PRECISION = "precision over recall"
PAGE_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 66rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.5rem; overflow-wrap: anywhere; } h2 { font-size: 1.2rem; margin-top: 2.5rem; }
.verdict { font-size: 1.1rem; border-left: 4px solid var(--c0); padding-left: 0.8rem; }
.charts { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: 0.15rem 0.7rem; border-bottom: 1px solid #8884; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
td:first-child { min-width: 6rem; } .together { white-space: nowrap; }
.long { display: inline-block; width: 14rem; overflow-wrap: anywhere; }
figure { margin: 0; } figcaption { font-size: 0.85rem; } img { max-width: 100%; height: auto; }
.row { display: grid; gap: 0.5rem; margin-bottom: 1rem; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); }
.well { color: var(--c2); } .badly { color: var(--c1); font-weight: 600; }
code { overflow-wrap: anywhere; }
@media (max-width: 30rem) { table { font-size: 0.8rem; } th, td { padding: 0.15rem 0.25rem; } td:first-child { min-width: 0; } }
@media print {
  body { font-size: 11px; max-width: none; } h2, h3 { break-after: avoid; } figure, tr { break-inside: avoid; }
  .charts { grid-template-columns: 1fr 1fr; } .wide { overflow: visible; } .long { width: 11rem; }
  th, td { padding: 0.15rem 0.35rem; }
}
"""  # noqa: E501


def main() -> None:
    """Parse the command line and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("runs", nargs="*", metavar="RUN", help="output_dir of finetune.py, or of pretrain.py")
    add("--pretrain", nargs="+", default=[], metavar="RUN", help="more runs of pretrain.py")
    add("--output", default=REPORT, metavar="FILE", help=f"page to write ({REPORT})")
    args = parser.parse_intermixed_args()
    if not args.runs + args.pretrain:
        parser.error("give at least one run")
    with cli.one_line_errors(ValueError, DataError):
        runs = [RunFiles.read(path) for path in (*args.runs, *args.pretrain)]
        write(page(runs), args.output)
    print(f"report: {args.output}")


def report_run(path: Path) -> None:
    """Write `report.html` of a run that has ended into its directory, together with the
    pre-training that it started from, if that is still there.

    The run is done: what keeps the page from being written is said, but is no error.
    """
    try:
        run = RunFiles.read(path)
        runs = [run, *pre_training_of(run)]
        write(page(runs), path / REPORT)
    except (ValueError, DataError, OSError) as error:
        say(f"report: could not be written: {error}")
    else:
        say(f"report: {path / REPORT}")


def pre_training_of(run: RunFiles) -> list[RunFiles]:
    """The run whose weights a fine-tuning started from, if it is one of box-domain pre-training."""
    source = Path(run.manifest.get("source") or "")
    folder = source if source.is_dir() else source.parent
    if not run.manifest.get("source") or not (folder / "metrics.jsonl").is_file():
        return []
    start = RunFiles.read(folder)
    return [start] if start.pre_trains else []


def write(text: str, path: str | Path) -> None:
    """Write the page, whole or not at all."""
    with open_atomic(Path(path)) as file:
        file.write(text)


def page(runs: Sequence[RunFiles]) -> str:
    """The page, as HTML, of runs of pre-training and of fine-tuning."""
    pre_training = [run for run in runs if run.pre_trains]
    fine_tuning = [run for run in runs if not run.pre_trains]
    groups = groups_of(fine_tuning)
    labels = val_labels(groups)
    sections = [
        verdict(groups),
        what_differed(groups),
        *(health(run) for run in pre_training),
        curves(groups),
        amounts(groups, labels),
        per_class(groups, labels),
        errors(groups, labels),
        pictures(groups, labels),
    ]
    title = " and ".join([group.title for group in groups] or [run.name for run in runs])
    head = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{STYLE}{PAGE_STYLE}</style></head>"
    )
    body = "\n".join(section for section in sections if section)
    return f"{head}<body><h1>{html.escape(title)}</h1>\n{body}</body></html>\n"


def val_labels(groups: Sequence[Group]) -> Labels:
    """What the first run of each start was evaluated on; each file is read once."""
    found: dict[str, dict[str, Any]] = {}
    for config in (group.first.data for group in groups):
        path = config.val.annotations
        if path and path not in found and Path(path).is_file():
            found[path] = load_coco(path, config.crowd)
    return found


def verdict(groups: Sequence[Group]) -> str:
    """AP of each run, and what the starts say together."""
    if not groups:
        return ""
    words = [sentence(groups[0], other) for other in groups[1:]]
    keys = [k for k in SCORES if any(k in r.results for g in groups for r in g.runs.values())]
    runs = [(group, *of_seed) for group in groups for of_seed in sorted(group.runs.items())]
    names = told_apart([run.path for _, _, run in runs])
    rows = [
        [name, kept_together(group.title), seed, *(_number(run.results.get(k)) for k in keys)]
        for name, (group, seed, run) in zip(names, runs, strict=True)
    ]
    unfinished = [str(row[0]) for row in rows if row[3] == "–"] if keys else [r[0] for r in rows]
    if unfinished:
        words.append(f"Without a final score so far: {', '.join(unfinished)}.")
    lines = "".join(f'<p class="verdict">{html.escape(line)}</p>' for line in words)
    return lines + table(["run", "start", "seed", *keys], rows)


def what_differed(groups: Sequence[Group]) -> str:
    """The keys in which the groups differ, of their first runs."""
    if len(groups) < 2:
        return ""
    first = [group.first for group in groups]
    flat = [run.flat() | {"--init": run.manifest.get("source")} for run in first]
    keys = [k for k in dict.fromkeys(k for f in flat for k in f) if k not in SEED_KEYS]
    rows = [
        [key, *(value(str(f.get(key, "–"))) for f in flat)]
        for key in keys
        if len({str(f.get(key, "–")) for f in flat}) > 1
    ]
    if not rows:
        return ""
    return "<h2>What differed</h2>" + table(["key", *(group.title for group in groups)], rows)


def health(run: RunFiles) -> str:
    """Whether a pre-training looks well, curve by curve."""
    figures = []
    for found in readings(run):
        lines = [Line(key, run.curve(key)) for key in found.keys]
        mark = {True: "looks well", False: "does not look well", None: ""}[found.looks_well]
        kind = {True: "well", False: "badly", None: ""}[found.looks_well]
        figures.append(
            f"<figure>{line_chart(lines, found.title)}<figcaption>{html.escape(found.advice)} "
            f'<b>Here: {html.escape(found.finding)}.</b> <span class="{kind}">{mark}</span>'
            "</figcaption></figure>"
        )
    warned = "".join(
        f'<p class="badly">{html.escape(text)}</p>' for text in dict.fromkeys(warnings_of(run))
    )
    title = f"Pre-training: {html.escape(run.name)}"
    charts = f'<div class="charts">{"".join(figures)}</div>'
    return f"<h2>{title}</h2>{warned}{charts}{proposals_section(run)}"


def curves(groups: Sequence[Group]) -> str:
    """AP, losses, learning rate and speed of fine-tuning, all runs on the same axes."""
    if not groups:
        return ""
    charts = [line_chart(list(_lines(groups, RunFiles.scores)), "AP")]
    for key, title in (
        ("loss", "loss"),
        ("lr", "learning rate"),
        ("images_per_second", "images per second"),
    ):
        charts.append(line_chart(list(_lines(groups, RunFiles.curve, key)), title))
    for group in groups:
        run = group.first
        terms = dict.fromkeys(k for line in run.lines for k in line if k.startswith("loss_"))
        lines = [Line(key.removeprefix("loss_"), run.curve(key)) for key in terms]
        charts.append(line_chart(lines, f"losses of {group.title}, seed {next(iter(group.runs))}"))
    figures = "".join(f"<figure>{chart}</figure>" for chart in charts if chart)
    return f'<h2>Fine-tuning</h2><div class="charts">{figures}</div>'


def _lines(groups: Sequence[Group], values: Callable[..., Any], *key: str) -> Iterator[Line]:
    """A line per run, in the colour of its start, which is named once."""
    for colour, group in enumerate(groups):
        for number, run in enumerate(group.runs.values()):
            yield Line("" if number else group.title, values(run, *key), colour)


def amounts(groups: Sequence[Group], labels: Labels) -> str:
    """How much there was to learn from and to be measured on, by the first run."""
    if not groups:
        return ""
    config = groups[0].first.data
    rows = []
    for title, source in (("train", config.train), ("val", config.val)):
        path = Path(source.annotations or "")
        if path.is_file() and path.stat().st_size <= MOST_BYTES:
            content = labels.get(source.annotations) or load_coco(path, config.crowd)
            rows.append([title, *counts(content)])
    if not rows:
        return ""
    head = ["", "images", "without an object", "objects", "classes", "size of an object (median)"]
    return "<h2>Data</h2>" + table(head, rows)


def counts(content: Mapping[str, Any]) -> list[str]:
    """Images, those without an object, objects, classes, and the median of the root of the objects'
    areas in pixels of the files, of a COCO dict; crowds are no objects."""
    objects = [a for a in content["annotations"] if not a.get("iscrowd")]
    empty = len(content["images"]) - len({a["image_id"] for a in objects})
    sides = [math.sqrt(max(0.0, a["bbox"][2] * a["bbox"][3])) for a in objects]
    size = f"{median(sides):.0f} px" if sides else "–"
    numbers = (len(content["images"]), empty, len(objects), len(content["categories"]))
    return [*(f"{number:,}" for number in numbers), size]


def per_class(groups: Sequence[Group], labels: Labels) -> str:
    """AP of each class, as the mean over the seeds of each start."""
    of_groups = [[r.per_class for r in group.runs.values() if r.per_class] for group in groups]
    if not any(of_groups):
        return ""
    names = dict.fromkeys(name for runs in of_groups for run in runs for name in run)
    curves = [recall_curves(group.first, labels) for group in groups]
    rows = []
    for name in names:
        means = [_mean(run.get(name) for run in runs) for runs in of_groups]
        gain = None
        if len(means) > 1 and None not in (means[0], means[-1]):
            gain = means[-1] - means[0]
        gained = [f"{gain:+.1f}" if gain is not None else "–"] if len(means) > 1 else []
        lines = [of_run.get(name) for of_run in curves]
        drawn = "".join(sparkline(line, index) for index, line in enumerate(lines) if line)
        rows.append([name, *(_number(m) for m in means), *gained, kept_together(Markup(drawn))])
    titles = [group.title for group in groups] + ["difference"] * (len(groups) > 1)
    return "<h2>AP per class</h2>" + table(["class", *titles, PRECISION], rows)


def recall_curves(run: RunFiles, labels: Labels) -> Mapping[str, Sequence[tuple[float, float]]]:
    """Precision over recall of each class, where it can be found in a few seconds."""
    content = scored_soon(run, labels)
    return precision_curves(content, run.detections) if content else {}


def scored_soon(run: RunFiles, labels: Labels) -> Mapping[str, Any] | None:
    """The labels that a run was evaluated on, if its detections are there and comparing the two
    takes a few seconds."""
    content = labels.get(run.data.val.annotations)
    if content is None or run.detections is None:
        return None
    few = len(content["images"]) * len(content["categories"]) <= MOST_TO_SCORE
    return content if few else None


def errors(groups: Sequence[Group], labels: Labels) -> str:
    """What the first run of each start gets wrong, of those with the same labels."""
    found = [(group, scored_soon(group.first, labels)) for group in groups]
    found = [(group, content) for group, content in found if content]
    if not found:
        return ""
    last = found[-1][1]
    same = {group.title: group.first.detections for group, content in found if content is last}
    return errors_section(last, same)


def pictures(groups: Sequence[Group], labels: Labels) -> str:
    """Images with what is there and what the first run of each start found."""
    found = [group for group in groups if group.first.detections is not None]
    config = found[-1].first.data if found else None
    if config is None or config.val.annotations not in labels:
        return ""
    data = Validation.of(labels[config.val.annotations], config.val.images, config.reading)
    entries = [by_image(group.first.detections) for group in found]
    scores = [{i: f1(data.objects[i], of_run.get(i, [])) for i in data.files} for of_run in entries]
    parts = []
    for title, images in most_telling(scores, max(1, EACH // (1 + len(found)))):
        parts.append(f"<h3>{html.escape(title)}</h3>")
        for image in images:
            row = [("labels", picture(data, image, data.objects[image], with_scores=False))]
            for group, of_run in zip(found, entries, strict=True):
                row.append((group.title, picture(data, image, of_run.get(image, []), True)))
            file = Path(data.files[image]).name
            shown = "".join(figure(uri, f"{name}, {file}") for name, uri in row if uri)
            parts.append(f'<div class="row">{shown}</div>')
    return "<h2>Pictures</h2>" + "".join(parts)


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


if __name__ == "__main__":
    main()
