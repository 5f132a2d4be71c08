"""Warnings about a run that teaches the model nothing, from the values that are logged anyhow.

Each is said once, with what to do. The bounds lie between healthy runs and runs that were broken on
purpose, by a learning rate that is far too high; `tests/test_health.py` has the figures of both.
"""

from __future__ import annotations

import math
import sys
from collections import deque
from collections.abc import Callable, Mapping
from typing import TypeAlias

from tqdm import tqdm

LINES = 5  # that are averaged: each is of a single step
ALIKE = 0.9  # mean cosine of negatives: up to 0.6 in healthy runs, from 0.96 on after a collapse
NO_GAP = 0.05  # between the cosines of positives and negatives: then up to 0.03
AT_CHANCE = 3.0  # retrieval times instances: from 7 on in healthy runs, then 2 on average
MANY_INSTANCES = 16  # with fewer, a healthy run is not far from chance
UNTRAINED = 0.95  # of the loss at chance: MoCo up to 0.75 in healthy runs, then from 0.96 on
GUESSES = 1.25  # times the accuracy of a guess: healthy classifiers with such a loss had 1.5

TOO_FAST = (
    "lower optim.lr or set optim.clip_norm, give model.backbone_weights if the backbone is random, "
    "and start over with --resume none"
)

Values: TypeAlias = "Mapping[str, float]"  # as in metrics.jsonl, averaged over some lines
Check: TypeAlias = "Callable[[Values], str | None]"  # what is wrong, if anything


class Health:
    """Watches the lines of a run.

    Args:
        warmup: steps of the warm-up of the learning rate.
        total: steps of the run.
        loss_at_chance: of a task whose loss has this value as long as nothing is learned.
    """

    def __init__(self, warmup: int, total: int, loss_at_chance: float | None = None) -> None:
        self.start = max(warmup, total // 10)  # before it, a model may well know nothing
        self.lines: deque[Values] = deque(maxlen=LINES)
        self.after_start: deque[Values] = deque(maxlen=LINES)
        self.loss_at_chance = loss_at_chance
        self.unsaid: list[Check] = [few_boxes, few_instances, scale_collapsed]
        self.unsaid_after_start: list[Check] = [contrast_fails, self.nothing_learned]

    def watch(self, step: int, values: Values) -> None:
        """Print what is wrong for the first time, after the line of a step."""
        for warning in self.warnings(step, values):
            tqdm.write(f"warning: {warning}", file=sys.stderr)

    def warnings(self, step: int, values: Values) -> list[str]:
        """What is wrong for the first time, after the line of a step."""
        self.lines.append(values)
        found = new_warnings(self.unsaid, self.lines)
        if step > self.start:
            self.after_start.append(values)
            found += new_warnings(self.unsaid_after_start, self.after_start)
        return found

    def nothing_learned(self, mean: Values) -> str | None:
        """A loss as that of a guess."""
        chance = self.loss_at_chance
        if chance is None or mean["loss"] < UNTRAINED * chance:
            return None
        if mean.get("accuracy", 0.0) > GUESSES * math.exp(-chance):  # 1 / K, of a classifier
            return None
        return (
            f"the loss is {mean['loss']:.3g}, as without any learning ({chance:.3g}); "
            "change optim.lr, most likely to a lower one, and start over with --resume none"
        )


def new_warnings(unsaid: list[Check], lines: deque[Values]) -> list[str]:
    """The warnings of the checks that fail on the mean of the lines; these are taken out."""
    if len(lines) < LINES:
        return []
    mean = {key: sum(line[key] for line in lines) / LINES for key in lines[-1]}
    failed = [(check, text) for check in unsaid if (text := check(mean))]
    for check, _ in failed:
        unsaid.remove(check)
    return [text for _, text in failed]


def few_boxes(mean: Values) -> str | None:
    """Most images have no proposal at all."""
    if mean.get("without_boxes", 0.0) <= 0.5:
        return None
    return (
        f"{mean['without_boxes']:.0%} of the images have no box and teach nothing; look at the "
        "boxes with python -m data.proposals --draw, and give it a looser --filter, or leave such "
        "images out"
    )


def few_instances(mean: Values) -> str | None:
    """Boxes, but no prediction that would answer for them."""
    if mean.get("instances", 1.0) >= 0.5 or few_boxes(mean):
        return None
    return (
        "in most batches no box has a prediction in both views, so nothing is contrasted; the "
        "boxes are too small for the size at which the network sees the images: raise "
        "data.short_sides and data.max_side"
    )


def scale_collapsed(mean: Values) -> str | None:
    """The loss scale of fp16 has been halved again and again."""
    if mean.get("loss_scale", 1.0) >= 1.0:
        return None
    return (
        f"fp16: the loss scale has fallen to {mean['loss_scale']:.2g}, and steps are skipped, "
        "since gradients are infinite at every scale; set amp=bf16 or amp=none"
    )


def contrast_fails(mean: Values) -> str | None:
    """All embeddings point the same way, or no instance is recognised in the other view."""
    if "cos_negative" not in mean:
        return None
    positive, negative = mean["cos_positive"], mean["cos_negative"]
    if negative > ALIKE and positive - negative < NO_GAP:
        return (
            f"all embeddings are alike (mean cosine {positive:.2f} of positives, {negative:.2f} of "
            f"negatives): the contrast has collapsed; {TOO_FAST}"
        )
    instances = mean.get("instances", 0.0)
    if instances >= MANY_INSTANCES and mean["retrieval"] * instances < AT_CHANCE:
        return (
            f"retrieval is {mean['retrieval']:.3f}, as by chance among {instances:.0f} instances: "
            f"the embeddings tell no instance from another; {TOO_FAST}"
        )
    return None
