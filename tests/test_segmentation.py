"""The fast over-segmentation against the paper's algorithm written as plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest

from data import segmentation
from data.segmentation import felzenszwalb, gaussian_blur, grid_edges


def segment_slowly(image: np.ndarray, scale: float, min_size: int) -> np.ndarray:
    """Algorithm 1 of Felzenszwalb and Huttenlocher, one edge after the other."""
    height, width, _ = image.shape
    edges = []
    for y in range(height):
        for x in range(width):
            for dy, dx in ((0, 1), (1, 0), (1, 1), (1, -1)):
                if 0 <= y + dy < height and 0 <= x + dx < width:
                    weight = math.dist(image[y, x].tolist(), image[y + dy, x + dx].tolist())
                    edges.append((weight, (y, x), (y + dy, x + dx)))
    edges.sort(key=lambda edge: edge[0])
    region = {(y, x): {(y, x)} for y in range(height) for x in range(width)}
    heaviest = {id(pixels): 0.0 for pixels in region.values()}

    def join(one: set, other: set, weight: float) -> None:
        one |= other
        heaviest[id(one)] = weight
        for pixel in other:
            region[pixel] = one

    for weight, p, q in edges:
        one, other = region[p], region[q]
        if one is not other and weight <= min(
            heaviest[id(one)] + scale / len(one), heaviest[id(other)] + scale / len(other)
        ):
            join(one, other, weight)
    for weight, p, q in edges:
        one, other = region[p], region[q]
        if one is not other and min(len(one), len(other)) < min_size:
            join(one, other, weight)
    numbers = {}
    labels = np.zeros((height, width), dtype=int)
    for pixel, pixels in region.items():
        labels[pixel] = numbers.setdefault(id(pixels), len(numbers))
    return labels


def same_partition(one: np.ndarray, other: np.ndarray) -> bool:
    pairs = set(zip(one.ravel().tolist(), other.ravel().tolist()))
    return len(pairs) == len(set(one.ravel().tolist())) == len(set(other.ravel().tolist()))


def noisy_image(seed: int, height: int = 26, width: int = 31) -> np.ndarray:
    """Smooth blobs and noise: regions of many sizes, no two edges equally heavy."""
    random = np.random.default_rng(seed)
    noise = random.uniform(0, 255, (height, width, 3)).astype(np.float32)
    return gaussian_blur(noise, 1.5) * 2 + noise * 0.1


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("scale", "min_size"), [(5.0, 1), (60.0, 1), (60.0, 12), (400.0, 5)])
def test_equals_the_slow_algorithm(seed: int, scale: float, min_size: int) -> None:
    image = noisy_image(seed)
    expected = segment_slowly(image, scale, min_size)
    found = felzenszwalb(image, scale, sigma=0, min_size=min_size)
    assert found.shape == expected.shape
    assert 1 < expected.max() + 1 < image.shape[0] * image.shape[1]
    assert same_partition(found, expected)


def test_clean_ups_between_stretches_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    image = noisy_image(7)
    expected = segment_slowly(image, 40.0, 6)
    for stretch in (1, 13, 200):
        monkeypatch.setattr(segmentation, "STRETCH", stretch)
        assert same_partition(felzenszwalb(image, 40.0, sigma=0, min_size=6), expected)


def test_labels_count_from_zero_without_gaps() -> None:
    labels = felzenszwalb(noisy_image(0), 50.0)
    assert labels.dtype == np.int32
    assert set(np.unique(labels)) == set(range(labels.max() + 1))


def test_min_size_holds() -> None:
    labels = felzenszwalb(noisy_image(1), 5.0, sigma=0, min_size=30)
    assert np.bincount(labels.ravel()).min() >= 30


def test_two_flat_halves_are_two_regions() -> None:
    image = np.zeros((20, 30, 3), dtype=np.float32)
    image[:, 12:] = 200
    labels = felzenszwalb(image, 100.0, sigma=0)
    expected = np.zeros((20, 30), dtype=int)
    expected[:, 12:] = 1
    assert same_partition(labels, expected)


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (9, 1), (2, 2)])
def test_tiny_images(shape: tuple[int, int]) -> None:
    labels = felzenszwalb(np.full((*shape, 3), 40.0), 100.0)
    assert labels.shape == shape
    assert (labels == 0).all()


def test_edges_join_each_neighbouring_pair_once() -> None:
    image = np.arange(12, dtype=np.float32).reshape(3, 4, 1)
    first, second, weight = grid_edges(image)
    pairs = {frozenset(pair) for pair in zip(first.tolist(), second.tolist())}
    expected = {
        frozenset((a, b))
        for a in range(12)
        for b in range(12)
        if a != b and abs(a // 4 - b // 4) <= 1 and abs(a % 4 - b % 4) <= 1
    }
    assert len(first) == len(pairs) and pairs == expected
    assert np.array_equal(weight, np.abs(first - second))


def test_sort_order_is_the_stable_one() -> None:
    random = np.random.default_rng(0)
    weight = np.concatenate([random.uniform(0, 400, 3000), random.integers(0, 9, 3000)])
    weight = random.permutation(weight).astype(np.float32)
    expected = sorted(range(len(weight)), key=lambda i: weight[i])
    assert segmentation._sort_order(weight).tolist() == expected


def test_blur_is_a_gaussian_and_repeats_the_border() -> None:
    sigma, radius = 0.8, 3
    image = np.random.default_rng(3).uniform(0, 255, (6, 8, 2)).astype(np.float32)
    total, expected = 0.0, np.zeros_like(image, dtype=np.float64)
    for dy in range(-radius, radius + 1):
        for dx in range(-radius, radius + 1):
            kernel = math.exp(-(dy * dy + dx * dx) / (2 * sigma**2))
            total += kernel
            for y in range(6):
                for x in range(8):
                    source = image[min(max(y + dy, 0), 5), min(max(x + dx, 0), 7)]
                    expected[y, x] += kernel * source
    np.testing.assert_allclose(gaussian_blur(image, sigma), expected / total, rtol=1e-5)
