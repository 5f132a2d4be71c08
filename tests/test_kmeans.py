"""k-means against a slow loop and planted clusters, k-means++ by hand, PCA against the SVD."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch

from aligndet import kmeans as module
from aligndet.kmeans import (
    PCA,
    Quantiser,
    assign,
    drawn,
    fit_pca,
    kmeans,
    kmeans_plus_plus,
    means_of,
)

exact = pytest.mark.usefixtures("double_precision")


def blobs(clusters=5, each=40, width=4, spread=0.05, seed=0):
    """Points around far centres, shuffled; the points and their blobs."""
    generator = torch.Generator().manual_seed(seed)
    centres = 10 * torch.randn(clusters, width, generator=generator)
    labels = torch.arange(clusters).repeat(each)
    labels = labels[torch.randperm(len(labels), generator=generator)]
    noise = spread * torch.randn(len(labels), width, generator=generator)
    return centres[labels] + noise, labels


def squared_distance(x, y):
    return sum((a - b) ** 2 for a, b in zip(x, y, strict=True))


def slow_kmeans(points, centres, iterations):
    """Lloyd's algorithm with lists; returns the centres and the inertia of each iteration."""
    points, centres, history = points.tolist(), centres.tolist(), []
    for _ in range(iterations):
        found = [
            min(range(len(centres)), key=lambda k: squared_distance(x, centres[k])) for x in points
        ]
        total = sum(squared_distance(x, centres[k]) for x, k in zip(points, found, strict=True))
        history.append(total / len(points))
        for k in range(len(centres)):
            own = [x for x, label in zip(points, found, strict=True) if label == k]
            if own:
                centres[k] = [sum(column) / len(own) for column in zip(*own, strict=True)]
    return centres, history


@exact
def test_kmeans_equals_a_slow_loop(monkeypatch):
    """Block by block, too."""
    monkeypatch.setattr(module, "BLOCK", 17)
    monkeypatch.setattr(module, "TOLERANCE", -1.0)  # all iterations
    points = torch.randn(150, 3, generator=torch.Generator().manual_seed(1))
    start = kmeans_plus_plus(points, 6, seed=3)
    found = kmeans(points, 6, seed=3, iterations=8)
    centres, history = slow_kmeans(points, start, 8)
    torch.testing.assert_close(found.centres, torch.tensor(centres))
    assert found.inertia == pytest.approx(history)


@exact
@pytest.mark.parametrize("seed", range(5))
def test_the_inertia_never_rises(seed):
    points = torch.rand(400, 5, generator=torch.Generator().manual_seed(seed))
    history = kmeans(points, 40, seed).inertia
    assert len(history) > 3
    assert all(after <= before for before, after in zip(history, history[1:], strict=False))


def test_planted_clusters_are_found():
    points, labels = blobs()
    found, _ = assign(points, kmeans(points, 5).centres)
    pairs = set(zip(labels.tolist(), found.tolist(), strict=True))
    assert len(pairs) == 5
    assert len({k for _, k in pairs}) == 5


def test_seed():
    points = torch.rand(300, 4, generator=torch.Generator().manual_seed(0))
    same, other = (kmeans(points, 12, seed).centres for seed in (0, 1))
    assert torch.equal(same, kmeans(points, 12, 0).centres)
    assert not torch.equal(same, other)


@exact
def test_assignment_does_not_depend_on_the_size_of_blocks(monkeypatch):
    points = torch.rand(300, 8, generator=torch.Generator().manual_seed(0))
    centres, found = points[:20], []
    for size in (1, 7, 300):
        monkeypatch.setattr(module, "BLOCK", size)
        found.append(assign(points, centres))
    for labels, distances in found:
        assert torch.equal(labels, found[0][0])
        torch.testing.assert_close(distances, torch.cdist(points, centres).amin(1) ** 2)
    assert found[0][0][:20].tolist() == list(range(20))


def test_equally_near_centres_give_the_lowest():
    labels, distances = assign(torch.zeros(1, 1), torch.tensor([[2.0], [-1.0], [1.0], [1.0]]))
    assert labels.tolist() == [1]
    assert distances.tolist() == [1.0]


def test_means_by_hand():
    points = torch.tensor([[1.0, 0.0], [3.0, 4.0], [5.0, 5.0]])
    centres = torch.tensor([[9.0, 9.0], [8.0, 8.0], [7.0, 7.0]])
    means = means_of(points, torch.tensor([2, 2, 0]), centres)
    assert means.tolist() == [[5.0, 5.0], [8.0, 8.0], [2.0, 2.0]]


@exact
def test_a_cluster_that_lost_its_features_is_filled_again(monkeypatch):
    """All start in one place: one cluster has everything, the other three nothing."""
    points, _ = blobs(clusters=4)
    monkeypatch.setattr(module, "kmeans_plus_plus", lambda *args: torch.full((4, 4), 50.0))
    found = kmeans(points, 4)
    labels, _ = assign(points, found.centres)
    assert len(labels.unique()) == 4
    assert all(b <= a for a, b in zip(found.inertia, found.inertia[1:], strict=False))


def test_fewer_different_features_than_clusters():
    points = torch.tensor([[0.0], [1.0], [1.0], [1.0]])
    found = kmeans(points, 3)
    assert found.inertia[-1] == 0.0
    assert torch.isfinite(found.centres).all()
    assert set(found.centres[:, 0].tolist()) == {0.0, 1.0}


def test_fewer_features_than_clusters():
    with pytest.raises(ValueError, match="3 boxes cannot make 4 clusters"):
        kmeans(torch.zeros(3, 2), 4)


def test_draws_by_hand():
    """Weights 1, 0, 3: the first quarter draws the first, the rest the last, nothing the second."""
    weights = torch.tensor([1.0, 0.0, 3.0])
    assert [drawn(weights, u) for u in (0.0, 0.249, 0.25, 0.251, 0.999)] == [0, 0, 2, 2, 2]
    assert drawn(torch.tensor([0.0, 2.0]), 0.0) == 1
    assert drawn(torch.zeros(4), 0.6) == 2  # all alike: any
    assert drawn(torch.tensor([1.0, 0.0]), math.nextafter(1.0, 0.0)) == 0


def test_probabilities_of_the_start_by_hand():
    """Points 0, 1 and 3, two centres. The squared distances to the others are 1 and 9 from 0,
    1 and 4 from 1, 9 and 4 from 3, so these pairs have, in order, the probabilities below."""
    points, number = torch.tensor([[0.0], [1.0], [3.0]]), 4000
    found = Counter(tuple(kmeans_plus_plus(points, 2, s)[:, 0].tolist()) for s in range(number))
    expected = {
        (0.0, 1.0): 1 / 30, (0.0, 3.0): 9 / 30,
        (1.0, 0.0): 1 / 15, (1.0, 3.0): 4 / 15,
        (3.0, 0.0): 9 / 39, (3.0, 1.0): 4 / 39,
    }  # fmt: skip
    assert found.keys() == expected.keys()
    for pair, probability in expected.items():
        five_sigma = 5 * math.sqrt(number * probability * (1 - probability))
        assert abs(found[pair] - number * probability) < five_sigma


def test_the_start_takes_every_point_before_any_twice():
    points = torch.arange(6.0)[:, None]
    assert sorted(kmeans_plus_plus(points, 6, seed=5)[:, 0].tolist()) == [0, 1, 2, 3, 4, 5]


@exact
@pytest.mark.parametrize("block", [13, 1000])
def test_pca_equals_the_svd(monkeypatch, block):
    monkeypatch.setattr(module, "BLOCK", block)
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(100, 7, generator=generator) * torch.arange(1.0, 8) + 3
    pca = fit_pca(values, 4)
    centred = values - values.mean(dim=0)
    _, _, rows = torch.linalg.svd(centred, full_matrices=False)
    signs = (pca.components * rows[:4].T).sum(dim=0).sign()  # that of a component is free
    torch.testing.assert_close(pca.mean, values.mean(dim=0))
    torch.testing.assert_close(pca.components * signs, rows[:4].T)
    torch.testing.assert_close(pca(values), centred @ pca.components)


def test_pca_of_few_channels_and_of_half_precision():
    values = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    assert fit_pca(values, 256).components.shape == (3, 3)
    half = fit_pca(values.half(), 2)
    assert half.components.dtype == half(values.half()).dtype == torch.float32
    exact = fit_pca(values.half().double(), 2)
    torch.testing.assert_close(half.components.double(), exact.components, rtol=0, atol=1e-4)


def test_quantiser_clusters_directions():
    """The lengths of what is left of the features do not count."""
    pca = PCA(torch.zeros(2), torch.eye(2))
    quantiser = Quantiser(pca, torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    assert quantiser(torch.tensor([[0.1, 0.0], [0.0, 90.0], [2.0, 3.0]])).tolist() == [0, 1, 1]
