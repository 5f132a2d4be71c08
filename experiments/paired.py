"""Means and confidence intervals of paired runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import mean, stdev
from typing import NamedTuple

from scipy.stats import t

CONFIDENCE = 0.95


class Gain(NamedTuple):
    """Mean of paired differences and half the width of its interval."""

    mean: float
    half_width: float | None  # None for a single pair
    pairs: int

    def __str__(self) -> str:
        if self.half_width is None:
            return f"{self.mean:+.2f}"
        return f"{self.mean:+.2f} ± {self.half_width:.2f}"


def paired_gain(baseline: Sequence[float], values: Sequence[float]) -> Gain:
    """Student's t interval (95 %) of the mean of `values[i] - baseline[i]`.

    Pairing removes what both runs of a seed have in common: the order of the photographs, their
    augmentation, and which of them are labelled.

    Args:
        baseline: scores of the runs to compare with, one per seed, at least one.
        values: scores of the same seeds.
    """
    differences = [b - a for a, b in zip(baseline, values, strict=True)]
    n = len(differences)
    if n == 1:
        return Gain(differences[0], None, 1)
    quantile = float(t.ppf((1 + CONFIDENCE) / 2, n - 1))
    return Gain(mean(differences), quantile * stdev(differences) / math.sqrt(n), n)


def mean_and_spread(values: Sequence[float]) -> str:
    """`12.3 ± 0.4`: mean and standard deviation of a sample."""
    if len(values) == 1:
        return f"{values[0]:.2f}"
    return f"{mean(values):.2f} ± {stdev(values):.2f}"
