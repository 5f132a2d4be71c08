"""How pure clusters are, by hand."""

from __future__ import annotations

import math

import pytest
import torch

from benchmarks.clusters import mutual_information, nearest_agree, purity, scores


def test_by_hand():
    """Classes 0, 0, 1 and 1; the first cluster has the first three, the second the last."""
    assert scores(torch.tensor([0, 0, 0, 1]), torch.tensor([0, 0, 1, 1]), 2) == (
        0.75,
        pytest.approx(2 * mutual() / (binary(0.75) + math.log(2))),
    )


def binary(p):
    """Entropy."""
    return -p * math.log(p) - (1 - p) * math.log(1 - p)


def mutual():
    """H(class) - H(class | cluster): in the first cluster the classes are 2 to 1."""
    return math.log(2) - 0.75 * binary(2 / 3)


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ([[3, 0], [0, 5], [0, 0]], (1.0, 1.0)),  # an empty cluster does not matter
        ([[2, 2], [4, 4]], (0.5, 0.0)),
    ],
)
def test_the_best_and_the_worst(table, expected):
    table = torch.tensor(table).double()
    assert (purity(table), mutual_information(table)) == pytest.approx(expected)


def test_the_nearest_box_is_of_another_image():
    values = torch.tensor([[1.0, 0.0], [1.0, 0.1], [5.0, 1.0], [0.0, 1.0]])
    labels, images = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 0, 1, 2])
    # The first two agree with each other, but the nearest elsewhere is the third.
    assert nearest_agree(values, labels, images) == pytest.approx(1 / 4)
