"""Confidence intervals against numbers from a t table."""

from __future__ import annotations

import math

import pytest

from experiments.paired import mean_and_spread, paired_gain


def test_interval_of_three_pairs():
    """Differences 1, 2, 3: standard deviation 1, t(0.975, 2) = 4.3027 (table), root of 3."""
    gain = paired_gain([10.0, 20.0, 30.0], [11.0, 22.0, 33.0])
    assert gain.mean == pytest.approx(2.0)
    assert gain.half_width == pytest.approx(4.3027 / math.sqrt(3), abs=1e-3)
    assert str(gain) == "+2.00 ± 2.48"


def test_what_the_pairs_have_in_common_does_not_widen_the_interval():
    gain = paired_gain([1.0, 50.0, 9.0, 30.0], [0.0, 49.0, 8.0, 29.0])
    assert (gain.mean, gain.half_width) == (-1.0, 0.0)


def test_a_single_pair_has_no_interval():
    gain = paired_gain([1.0], [3.5])
    assert (gain.mean, gain.half_width) == (2.5, None)
    assert str(gain) == "+2.50"


def test_unequal_numbers_are_refused():
    with pytest.raises(ValueError, match="shorter|longer"):
        paired_gain([1.0, 2.0], [1.0])


def test_mean_and_spread():
    assert mean_and_spread([1.0, 2.0, 3.0]) == "2.00 ± 1.00"
    assert mean_and_spread([4.0]) == "4.00"
