"""Selective search: boxes around whatever might be an object, without labels or training.

Source: Uijlings, van de Sande, Gevers and Smeulders, "Selective Search for Object Recognition",
IJCV 2013. An over-segmentation gives the first regions; then the two most similar neighbours are
merged until one region is left. The bounding boxes of all regions on the way are the proposals.
Several strategies (colour space, region scale, notion of similarity) are pooled, since no single
one suits every image.

Letters: `N` images, `H`, `W` image height and width, `R` regions, `F` histogram bins, `P` boxes.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from data.region_features import COLOUR_SPACES, Regions, describe_regions
from data.segmentation import felzenszwalb


@dataclass(frozen=True)
class Strategy:
    """One way to search."""

    colour_space: str = "hsv"  # key of COLOUR_SPACES; for segmentation and colour histograms
    scale: float = 100.0  # of the over-segmentation; larger starts from larger regions
    similarity: str = "ctsf"  # sum of colour, texture, size and fill; any of the letters


STRATEGIES = (
    Strategy("hsv", 100.0, "ctsf"),
    Strategy("hsv", 100.0, "tsf"),
    Strategy("lab", 100.0, "ctsf"),
    Strategy("lab", 100.0, "tsf"),
)
MIN_REGION = 20  # pixels; smaller regions of the over-segmentation are absorbed


def selective_search(
    images: Sequence[Tensor] | Tensor, strategies: Sequence[Strategy] = STRATEGIES
) -> list[Tensor]:
    """Propose boxes for each image.

    Args:
        images: (3, H, W) RGB tensors, uint8 or floating point in 0..1 (rounded to 8 bits), or one
            (N, 3, H, W) tensor of them.
        strategies: searches whose boxes are pooled.

    Returns:
        For each image (P, 4) float32 xyxy boxes in pixels on the image's device. Right and bottom
        edges are exclusive, so the whole image is (0, 0, W, H). Boxes are unique and ranked, best
        first. Equal images give equal boxes.

    Raises:
        ValueError: an image of another shape or type, floats outside 0..1, an unknown strategy.
    """
    for strategy in strategies:
        _check_strategy(strategy)
    found = []
    for image in images:
        boxes = _search_image(_to_pixels(image), strategies)
        found.append(torch.from_numpy(boxes).to(image.device))
    return found


def _check_strategy(strategy: Strategy) -> None:
    if strategy.colour_space not in COLOUR_SPACES:
        known = ", ".join(COLOUR_SPACES)
        raise ValueError(f"colour_space {strategy.colour_space!r} is unknown; use one of {known}")
    if not strategy.similarity or not set(strategy.similarity) <= set("ctsf"):
        raise ValueError(f"similarity {strategy.similarity!r} must be made of the letters c t s f")


def _to_pixels(image: Tensor) -> np.ndarray:
    """(3, H, W) tensor to (H, W, 3) uint8."""
    if image.ndim != 3 or image.shape[0] != 3:
        raise ValueError(f"images must have the shape (3, H, W), got {tuple(image.shape)}")
    if image.is_floating_point():
        if image.numel() and not (image.min() >= 0 and image.max() <= 1):
            raise ValueError("images of floats must lie in 0..1; undo the normalisation first")
        image = (image.float() * 255).round().to(torch.uint8)
    if image.dtype != torch.uint8:
        raise ValueError(f"images must be uint8 or floating point, got {image.dtype}")
    return image.permute(1, 2, 0).cpu().numpy()


def _search_image(pixels: np.ndarray, strategies: Sequence[Strategy]) -> np.ndarray:
    """(H, W, 3) uint8 to (P, 4) float32 boxes, ranked."""
    if pixels.size == 0:
        return np.zeros((0, 4), dtype=np.float32)
    described: dict[tuple[str, float], Regions] = {}  # strategies may share a segmentation
    hierarchies = []
    for strategy in strategies:
        key = (strategy.colour_space, strategy.scale)
        if key not in described:
            colours = COLOUR_SPACES[strategy.colour_space](pixels)
            labels = felzenszwalb(colours, strategy.scale, min_size=MIN_REGION)
            described[key] = describe_regions(labels, colours, pixels)
        hierarchies.append(group_regions(described[key], strategy.similarity))
    return rank_boxes(hierarchies)


def group_regions(
    regions: Regions, similarity: str = "ctsf"
) -> tuple[np.ndarray, np.ndarray]:
    """Merge the most similar neighbours until one region is left (Algorithm 1 of the paper).

    Returns:
        Boxes (2R-1, 4) float32 and pixels (2R-1,) float32: of the R given regions, then of each
        merged region in order of birth; the last is the whole image.
    """
    growing = Grouping(regions, similarity)
    count = len(regions.size)
    queue = []  # (negated similarity, region, region): the most similar pair comes out first
    for region in range(count):
        later = [n for n in sorted(growing.neighbours[region]) if n > region]
        queue += zip(growing.dissimilarity(region, later), [region] * len(later), later)
    heapq.heapify(queue)
    for new in range(count, 2 * count - 1):
        one = other = None
        while one not in growing.neighbours or other not in growing.neighbours:
            _, one, other = heapq.heappop(queue)  # skip pairs of which one is already merged
        growing.merge(one, other, new)
        around = sorted(growing.neighbours[new])
        for pair in zip(growing.dissimilarity(new, around), around, [new] * len(around)):
            heapq.heappush(queue, pair)
    return growing.box, growing.size


class Grouping:
    """Regions, given and merged, while they are being grouped; rows R.. are filled by ``merge``."""

    def __init__(self, regions: Regions, similarity: str) -> None:
        count = len(regions.size)
        histograms = [np.zeros((count, 0), dtype=np.float32)]
        histograms += [regions.colour] if "c" in similarity else []
        histograms += [regions.texture] if "t" in similarity else []
        self.histogram = _with_room(np.concatenate(histograms, axis=1))  # (2R-1, F)
        self.size = _with_room(regions.size.astype(np.float32))  # (2R-1,) pixels
        self.box = _with_room(regions.box.astype(np.float32))  # (2R-1, 4)
        self.pixels = float(regions.size.sum())
        self.use_size, self.use_fill = "s" in similarity, "f" in similarity
        self.neighbours: dict[int, set[int]] = {region: set() for region in range(count)}
        for one, other in regions.pairs.tolist():
            self.neighbours[one].add(other)
            self.neighbours[other].add(one)

    def dissimilarity(self, region: int, others: list[int]) -> list[float]:
        """Negated sum of the chosen measures, Equations 2 to 6 of the paper."""
        both = self.size[region] + self.size[others]
        total = np.minimum(self.histogram[region], self.histogram[others]).sum(axis=1)
        if self.use_size:
            total += 1 - both / self.pixels
        if self.use_fill:
            left_top = np.minimum(self.box[region, :2], self.box[others, :2])
            right_bottom = np.maximum(self.box[region, 2:], self.box[others, 2:])
            total += 1 - ((right_bottom - left_top).prod(axis=1) - both) / self.pixels
        return (-total).tolist()

    def merge(self, one: int, other: int, new: int) -> None:
        """Replace two regions by their union."""
        sizes = self.size[[one, other]]
        self.size[new] = sizes.sum()
        self.histogram[new] = sizes @ self.histogram[[one, other]] / sizes.sum()
        self.box[new, :2] = np.minimum(self.box[one, :2], self.box[other, :2])
        self.box[new, 2:] = np.maximum(self.box[one, 2:], self.box[other, 2:])
        around = (self.neighbours.pop(one) | self.neighbours.pop(other)) - {one, other}
        for region in around:
            self.neighbours[region] -= {one, other}
            self.neighbours[region].add(new)
        self.neighbours[new] = around


def _with_room(rows: np.ndarray) -> np.ndarray:
    """Append a row for every merge to come: R rows become 2R-1."""
    return np.concatenate([rows, np.zeros_like(rows[1:])])


def rank_boxes(hierarchies: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Pool the boxes of hierarchies as made by ``group_regions``: unique, most promising first.

    As in Section 4 of the paper the whole image has position 1, the last merge before it position
    2, and so on down to the first regions, and positions are multiplied by a factor, the smallest
    product first. The paper's factor is random, lest large boxes always win. Here it is small for
    regions that fill their box: on photos with labels, more objects survive the NMS this way.

    Returns:
        (P, 4) float32.
    """
    boxes = np.concatenate([box[::-1] for box, _ in hierarchies])
    pixels = np.concatenate([size[::-1] for _, size in hierarchies])
    position = np.concatenate([np.arange(1, len(box) + 1) for box, _ in hierarchies])
    fill = pixels / (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)  # in 0..1
    order = np.argsort(position * (1.2 - fill), kind="stable")
    _, best = np.unique(boxes[order], axis=0, return_index=True)
    return boxes[order[np.sort(best)]]
