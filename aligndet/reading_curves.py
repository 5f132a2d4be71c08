"""How to read the curves of a box-domain pre-training, and whether they look well.

The bounds lie where `aligndet.health` has them, which warns in the run itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

from aligndet.health import Health
from aligndet.run_files import RunFiles
from data.counting import count

PART = 10  # the start and the end of a run are a tenth of its lines each


@dataclass(frozen=True)
class Reading:
    """Some curves of a run that belong together."""

    title: str
    keys: tuple[str, ...]
    advice: str  # how to read them
    looks_well: bool | None  # None: there is nothing to judge
    finding: str  # what this run's are like, with figures


def readings(run: RunFiles) -> list[Reading]:
    """All curves that a pre-training has, in the order in which to look at them."""
    logged = [line for line in run.lines if "loss" in line]
    if not logged:
        return []
    length = max(1, len(logged) // PART)
    start, end = (averages(part) for part in (logged[:length], logged[-length:]))
    few = _too_few(end, run.data.batch_size)
    found = []
    for title, keys, advice, judge in CURVES:
        if not all(key in logged[-1] for key in keys):
            continue
        finite = all(key in part for key in keys for part in (start, end))
        judged = judge(start, end) if finite else NOT_FINITE
        if few and keys[0] in OF_INSTANCES:
            judged = few
        found.append(Reading(title, keys, advice, *judged))
    losses = tuple(key for key in end if key.startswith("loss_") and key != "loss_contrast")
    if losses:
        judged = few or _losses(start, end)
        found.append(Reading("the detector's own losses", losses, LOSSES, *judged))
    return found


def averages(lines: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The mean of every number that all of the lines have."""
    keys = [k for k in lines[-1] if all(_is_number(line.get(k)) for line in lines)]
    return {k: mean(line[k] for line in lines) for k in keys}


def warnings_of(run: RunFiles) -> list[str]:
    """The warnings that the run gave on its way, found again from its lines."""
    logged = [line for line in run.lines if "loss" in line]
    if not logged:
        return []
    total = int(logged[-1]["step"])
    warmup = run.config.get("schedule", {}).get("warmup_iterations", 0)
    health = Health(round(warmup if warmup >= 1 else warmup * total), total)
    found = []
    for line in logged:
        # In the file, null stands for what was not finite.
        values = {k: math.nan if v is None else v for k, v in line.items()}
        found += health.warnings(int(line["step"]), values)
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float))


Values = Mapping[str, float]
Judged = tuple[bool | None, str]


def _too_few(end: Values, batch_size: int) -> Judged | None:
    """What is to be said of all curves about instances, if there are not even half as many as
    images in a batch."""
    instances = end.get("instances", math.inf)
    if instances >= batch_size / 2:
        return None
    text = f"{instances:.1f} instances in a batch of {batch_size} images are too few to tell"
    return False, text


def _contrast(start: Values, end: Values) -> Judged:
    a, b = start["contrast_minus_floor"], end["contrast_minus_floor"]
    return b < 0.9 * a, f"from {a:.2f} to {b:.2f}"


def _cosines(start: Values, end: Values) -> Judged:
    positive, negative = end["cos_positive"], end["cos_negative"]
    text = f"in the end {positive:.2f} of positives, {negative:.2f} of negatives"
    return positive - negative > 0.1, text


def _retrieval(start: Values, end: Values) -> Judged:
    value, instances = end["retrieval"], end.get("instances", 0.0)
    text = f"from {start['retrieval']:.2f} to {value:.2f}"
    if instances < 2:
        return False, f"{text}; {instances:.0f} instances per batch"
    return value * instances > 5, f"{text}; a guess among {instances:.0f} has {1 / instances:.2f}"


def _positives(start: Values, end: Values) -> Judged:
    positives, instances = end["positives"], end.get("instances", 0.0)
    text = f"{positives:.0f} per batch, for {count(round(instances), 'instance')}"
    return instances >= 1 and positives >= instances, text


def _without_boxes(start: Values, end: Values) -> Judged:
    return end["without_boxes"] <= 0.5, f"{end['without_boxes']:.0%}"


def _growth(start: Values, end: Values) -> Judged:
    return None, f"{end['feature_growth']:.2g} times their size at the start"


def _losses(start: Values, end: Values) -> Judged:
    keys = [k for k in end if k.startswith("loss_") and k != "loss_contrast" and k in start]
    a, b = sum(start[k] for k in keys), sum(end[k] for k in keys)
    return b < RISE * a, f"their sum from {a:.2f} to {b:.2f}"


OF_INSTANCES = ("contrast_minus_floor", "cos_positive", "retrieval", "positives")
# Of two-stage detectors the sum can rise a little in a sound run: the loss of the RoIs' boxes grows
# while the RPN learns to propose more that overlap.
RISE = 1.2
NOT_FINITE: Judged = (False, "not finite at its start or end")
LOSSES = (
    "They fall while the detector learns to find the proposals; slowly, as no box is wrong. Of "
    "two-stage detectors, the loss of RoIs' boxes may rise as the RPN proposes more that overlap."
)
CURVES: tuple[tuple[str, tuple[str, ...], str, Callable[[Values, Values], Judged]], ...] = (
    (
        "contrastive loss above its floor",
        ("contrast_minus_floor",),
        "It falls. It need not reach 0: the floor is where all positives have cosine 1 and all "
        "negatives 0.",
        _contrast,
    ),
    (
        "cosines",
        ("cos_positive", "cos_negative"),
        "Positives rise towards 1, negatives fall to about 0. If both are near 1, all embeddings "
        "are alike: the contrast has collapsed.",
        _cosines,
    ),
    (
        "retrieval",
        ("retrieval",),
        "How often the most similar sample of the other view is of the same instance. It rises "
        "far above a guess.",
        _retrieval,
    ),
    (
        "positives",
        ("positives", "instances"),
        "Predictions that belong to a box, and boxes that have one in both views. If they are "
        "few, the boxes are too small for the size of the images, or there are none.",
        _positives,
    ),
    (
        "images without a box",
        ("without_boxes",),
        "They teach nothing.",
        _without_boxes,
    ),
    (
        "growth of the features",
        ("feature_growth",),
        "In front of the projector; it is taken out when the run ends, so any value will do.",
        _growth,
    ),
)
