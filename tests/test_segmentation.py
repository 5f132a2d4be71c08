"""The over-segmentation against slow loops: its own levels, and the paper's single edges."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from data.selective_search import segmentation
from data.selective_search.search import _pad
from data.selective_search.segmentation import (
    Segmentation,
    blur,
    grid_edges,
    segment,
    unique_pairs,
)


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pixels count for one even in small images, and nothing is blurred: simpler to check."""
    monkeypatch.setattr(segmentation, "REFERENCE_PIXELS", 1)
    monkeypatch.setattr(segmentation, "blur", lambda image: image)


def segment_all(image: Tensor, inside: Tensor, scale: float, min_size: int) -> Segmentation:
    """Segment a batch (N, C, H, W) with the same numbers for every image."""
    numbers = (torch.full((len(image),), float(number)) for number in (scale, min_size))
    return segment(image, inside, *numbers)


def labels_of(image: Tensor, scale: float, min_size: int) -> np.ndarray:
    """(H, W) labels of one (C, H, W) image."""
    inside = torch.ones(1, *image.shape[1:], dtype=torch.bool)
    return segment_all(image[None], inside, scale, min_size).labels[0].numpy()


def noisy_image(seed: int, height: int = 18, width: int = 23) -> Tensor:
    """(3, H, W) smooth blobs and noise: regions of many sizes, no two edges equally heavy.

    In steps of 1/32: the squared lengths of its edges, less than 2^24 such steps squared, are exact
    in float32, in whatever order the colours are added.
    """
    noise = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(seed)) * 255
    smooth = noise
    for _ in range(4):
        smooth = blur(smooth)
    image = ((smooth * 2 + noise * 0.1)[0] * 32).round() / 32
    assert all((image.diff(dim=d) * 32).square().sum(dim=0).max() < 2**24 for d in (1, 2))
    return image


def slow_edges(image: Tensor) -> list[tuple[np.float32, tuple[int, int], tuple[int, int]]]:
    """Edges to the right and down, lightest first; weights in float32, as in the code."""
    pixels = image.permute(1, 2, 0).numpy()
    height, width, _ = pixels.shape
    edges = []
    for y in range(height):
        for x in range(width):
            for other in ((y, x + 1), (y + 1, x)):
                if other[0] < height and other[1] < width:
                    difference = torch.from_numpy(pixels[y, x] - pixels[other])
                    weight = (difference * difference).sum().sqrt().numpy()[()]
                    edges.append((weight, (y, x), other))
    edges.sort(key=lambda edge: edge[0])
    assert len({weight for weight, _, _ in edges}) == len(edges)
    return edges


class SlowRegions:
    """Pixel sets and the heaviest edge merged inside each."""

    def __init__(self, image: Tensor) -> None:
        _, self.height, self.width = image.shape
        places = [(y, x) for y in range(self.height) for x in range(self.width)]
        self.of = {place: frozenset([place]) for place in places}
        self.heaviest = {self.of[place]: np.float32(0) for place in places}

    def limit(self, region: frozenset, scale: float) -> np.float32:
        return np.float32(self.heaviest[region] + np.float32(scale) / np.float32(len(region)))

    def join(self, regions: list[frozenset], weight: np.float32) -> None:
        union = frozenset().union(*regions)
        self.heaviest[union] = max([weight, *(self.heaviest[region] for region in regions)])
        for pixel in union:
            self.of[pixel] = union

    def join_lightest(self, edges: list, chooses) -> None:
        """Every region that `chooses` takes its lightest edge; connected regions are joined."""
        taken = {}
        for weight, p, q in edges:  # light first
            for region in (self.of[p], self.of[q]):
                if chooses(region):
                    taken.setdefault(region, (weight, p, q))
        groups: list[tuple[list, list]] = []
        for weight, p, q in set(taken.values()):
            ends = [self.of[p], self.of[q]]
            touching = [group for group in groups if any(end in group[0] for end in ends)]
            groups = [group for group in groups if group not in touching]
            merged = {end for group in touching for end in group[0]} | set(ends)
            groups.append((list(merged), [weight, *(w for g in touching for w in g[1])]))
        for regions, weights in groups:
            self.join(regions, max(weights))

    def labels(self) -> np.ndarray:
        numbers: dict[frozenset, int] = {}
        rows = [
            [numbers.setdefault(self.of[y, x], len(numbers)) for x in range(self.width)]
            for y in range(self.height)
        ]
        return np.array(rows)


def segment_by_levels(image: Tensor, scale: float, min_size: int) -> np.ndarray:
    """What the module says it does, one edge and one pixel at a time."""
    regions, edges = SlowRegions(image), slow_edges(image)
    below = -1.0
    for level in segmentation._levels():
        now = [edge for edge in edges if below < edge[0] <= level]
        for _ in range(segmentation.ROUNDS):  # no weight is 0 here
            now = [
                (w, p, q) for w, p, q in now
                if regions.of[p] != regions.of[q]
                and w <= min(regions.limit(regions.of[end], scale) for end in (p, q))
            ]  # fmt: skip
            regions.join_lightest(now, lambda region: True)
        below = level
    while True:
        apart = [(w, p, q) for w, p, q in edges if regions.of[p] != regions.of[q]]
        now = [e for e in apart if min(len(regions.of[e[1]]), len(regions.of[e[2]])) < min_size]
        if not now:
            return regions.labels()
        regions.join_lightest(now, lambda region: len(region) < min_size)


def segment_by_edges(image: Tensor, scale: float, min_size: int) -> np.ndarray:
    """Algorithm 1 of Felzenszwalb and Huttenlocher."""
    regions, edges = SlowRegions(image), slow_edges(image)
    for weight, p, q in edges:
        one, other = regions.of[p], regions.of[q]
        if one != other and weight <= min(regions.limit(r, scale) for r in (one, other)):
            regions.join([one, other], weight)
    for weight, p, q in edges:
        one, other = regions.of[p], regions.of[q]
        if one != other and min(len(one), len(other)) < min_size:
            regions.join([one, other], weight)
    return regions.labels()


def same_partition(one: np.ndarray, other: np.ndarray) -> bool:
    pairs = set(zip(one.ravel().tolist(), other.ravel().tolist(), strict=True))
    return len(pairs) == len(set(one.ravel().tolist())) == len(set(other.ravel().tolist()))


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("scale", "min_size"), [(20.0, 1), (100.0, 1), (100.0, 9), (400.0, 5)])
def test_equals_slow_levels(seed: int, scale: float, min_size: int) -> None:
    image = noisy_image(seed)
    expected = segment_by_levels(image, scale, min_size)
    assert 1 < expected.max() + 1 < image[0].numel()
    assert same_partition(labels_of(image, scale, min_size), expected)


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("seed", range(3))
def test_drawn_objects_are_the_regions_of_the_paper_and_of_the_drawing(seed: int) -> None:
    image = torch.full((3, 20, 26), 100.0)
    drawn = np.zeros((20, 26), dtype=int)
    image[:, 3:12, 4:15], drawn[3:12, 4:15] = 180.0, 1
    image[0, 10:18, 17:24], drawn[10:18, 17:24] = 30.0, 2
    image += torch.rand(image.shape, generator=torch.Generator().manual_seed(seed)) * 4
    found = labels_of(image, 300.0, 10)
    assert same_partition(found, segment_by_edges(image, 300.0, 10))
    assert same_partition(found, drawn)


def test_images_do_not_depend_on_their_batch() -> None:
    images = [noisy_image(i, *s).clamp(0, 255).round() for i, s in enumerate([(30, 20), (25, 40)])]
    together = segment_all(*_pad(images), 60.0, 30)
    shift = 0
    for image, labels in zip(images, together.labels.numpy(), strict=True):
        height, width = image.shape[1:]
        alone = labels_of(image, 60.0, 30)
        assert (labels[:height, :width] == alone + shift).all()
        assert (labels[height:] == -1).all()
        assert (labels[:, width:] == -1).all()
        shift += alone.max() + 1
    assert shift == together.count


def test_labels_have_no_gaps_and_min_size_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    image = noisy_image(1, 40, 50)
    labels = labels_of(image, 20.0, 100)  # a pixel counts for 320 x 240 / 2000 = 38.4
    counts = np.bincount(labels.ravel())
    assert 3 <= counts.min() < 30
    monkeypatch.setattr(segmentation, "REFERENCE_PIXELS", 1)
    assert np.bincount(labels_of(image, 20.0, 100).ravel()).min() >= 100


def test_pixels_of_small_images_count_for_more() -> None:
    sizes = segmentation.pixel_sizes(torch.tensor([120 * 160, 3, 300 * 400]))
    assert sizes.tolist() == [4, 25600, 1]  # of 320 x 240; never below 1


def test_images_may_have_numbers_of_their_own_and_are_split_again() -> None:
    images = torch.stack([noisy_image(i).clamp(0, 255).round() for i in range(2)]).repeat(
        2, 1, 1, 1
    )
    inside = torch.ones(4, *images.shape[2:], dtype=torch.bool)
    inside[1::2, 15:] = False
    scale, min_size = torch.tensor([60.0, 60, 200, 200]), torch.tensor([30.0, 30, 400, 400])
    parts = segment(images, inside, scale, min_size).split(2)
    for part, numbers in zip(parts, ((60.0, 30), (200.0, 400)), strict=True):
        alone = segment_all(images[:2], inside[:2], *numbers)
        assert torch.equal(part.labels, alone.labels)
        assert torch.equal(part.pairs, alone.pairs)
        assert part.count == alone.count
    assert parts[0].count > parts[1].count > 2


@pytest.mark.parametrize("size", [(1, 1), (1, 30), (17, 1), (40, 50)])
def test_one_colour_is_one_region(size: tuple[int, int]) -> None:
    assert (labels_of(torch.full((3, *size), 40.0), 100.0, 1) == 0).all()


@pytest.mark.usefixtures("plain")
def test_neighbours_are_listed_once() -> None:
    image = torch.zeros(3, 4, 30)
    image[:, :, 10:20], image[:, :, 20:] = 100, 200
    found = segment_all(image[None], torch.ones(1, 4, 30, dtype=torch.bool), 300.0, 1)
    assert found.count == 3
    assert found.pairs.tolist() == [[0, 1], [1, 2]]
    pairs = unique_pairs(torch.tensor([3, 1, 3]), torch.tensor([1, 3, 2]))
    assert pairs.tolist() == [[1, 2], [3, 3]]


def test_blur_by_hand_repeats_the_border() -> None:
    image = torch.tensor([[[[0.0, 16, 0, 0]]]])
    assert blur(image).tolist() == [[[[4, 8, 4, 0]]]]  # the one row is its own neighbour
    image = torch.tensor([[[[16.0, 0], [0, 0]]]])
    assert blur(image).tolist() == [[[[9, 3], [3, 1]]]]


def test_edges_join_right_and_lower_neighbours_inside_the_images() -> None:
    inside = torch.ones(2, 3, 4, dtype=torch.bool)
    inside[1, 2], inside[1, :, 3] = False, False  # 2 x 3 pixels
    image = torch.arange(24.0).view(2, 1, 3, 4) ** 2
    edges = grid_edges(image, inside)
    number = {place: i for i, place in enumerate(map(tuple, inside.nonzero().tolist()))}
    expected = {}
    for (n, y, x), i in number.items():
        for other in ((n, y, x + 1), (n, y + 1, x)):
            if other in number:
                weight = abs(image[n, 0, y, x] - image[n, 0, other[1], other[2]]).item()
                expected[i, number[other]] = weight
    ends = map(tuple, edges.ends.T.tolist())
    assert dict(zip(ends, edges.weight.tolist(), strict=True)) == expected
    assert len(edges.key) == len(expected)
    by_key = edges.weight[edges.key.argsort()]
    assert torch.equal(by_key, edges.weight.sort().values)


def test_every_weight_is_rounded_correctly() -> None:
    """Also where the processor's own roots in float32 are not. Colours are multiples of 1/4."""
    squared = torch.arange(1, 3 * (4 * 255) ** 2 + 1)  # in sixteenths
    found = segmentation.root(squared.float() / 16)
    # The float32 nearest to a root is less than half a step off: squares of whole numbers decide.
    _, exponent = torch.frexp(found)
    step = torch.ldexp(torch.ones_like(found), exponent - 24).double()
    low, high = found.double() - step / 2, found.double() + step / 2
    assert (low.square() <= squared.double() / 16).all()
    assert (squared.double() / 16 <= high.square()).all()
