"""Selective search: boxes around whatever might be an object, without labels or training.

Source: Uijlings, van de Sande, Gevers and Smeulders, "Selective Search for Object Recognition",
IJCV 2013. An over-segmentation gives the first regions; then the most similar neighbours are
merged until one region is left. The bounding boxes of all regions on the way are the proposals.
Several strategies (colour space, region scale, notion of similarity) are pooled, since no single
one suits every image.

Everything happens for a batch of images at once, with the same PyTorch operations on a CPU and a
GPU: `segment` (pixels to regions), `describe_regions` (histograms), `group_regions` (regions
to hierarchies) and `rank_boxes` (hierarchies to a list). Both find the same boxes: each operation
is exact, or rounded once as IEEE 754 says.

Each box stands for a region; `selective_search_with_regions` gives them both
(`data.selective_search.region_masks`).

Legend: N images, H, W image height and width, G regions given and merged, P boxes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from torchvision.ops import nms

from data.selective_search.colour_spaces import COLOUR_SPACES
from data.selective_search.grouping import MEASURES, Hierarchy, group_regions
from data.selective_search.region_features import Regions, describe_regions, texture_levels
from data.selective_search.region_masks import RegionMasks, collect_regions
from data.selective_search.segmentation import Segmentation, segment

LONGEST_SIDE = 2**14  # pixels


@dataclass(frozen=True)
class Strategy:
    """One over-segmentation and the hierarchies grown from it."""

    colour_space: str = "hsv"  # key of COLOUR_SPACES; for segmentation and colour histograms
    scale: float = 300.0  # of the over-segmentation; larger gives larger first regions
    min_size: int = 80  # pixels; smaller regions of the over-segmentation are absorbed
    similarities: tuple[str, ...] = ("ctsf", "sf", "cf", "tf")  # of colour, texture, size, fill


SEARCHES = {  # all for images of about 320 x 240 pixels
    "fast": (Strategy("hsv"),),
    "thorough": (Strategy("hsv"), Strategy("lab"), Strategy("rgb"), Strategy("hsv", 600.0)),
}
# A box that overlaps a better one by more than this IoU ranks as if this many times lower. `nms`
# compares with a float64 on a CPU and with the nearest float32 on CUDA, so that float32 may not be
# above the number, as it is for 0.8: 4/5 is the IoU of many pairs. The float32 below 0.8 demotes
# them, as 0.8 does on a CPU.
DEMOTIONS = (
    (0.5, 1.5),
    (0.65, 4.0),
    (13421772 / 2**24, 10.0),
    (0.9, 20.0),
)
HEAD_START = 20  # added to positions before demotion, so that the very first boxes can fall too
CPU_BATCH_PIXELS = 200_000  # searched together; more would not fit into the cache
GPU_NMS_BOXES = 20_000  # of several images compared at once; their pairs take 50 MB
NMS_IMAGES = 2**24 // LONGEST_SIDE  # side by side, their coordinates are exact in float32
GPU_BATCH_PIXELS = 8_000_000  # 100 images of 320 x 240; 300 bytes per pixel make 2.4 GB


def selective_search(
    images: Sequence[Tensor] | Tensor, strategies: Sequence[Strategy] = SEARCHES["thorough"]
) -> list[Tensor]:
    """Propose boxes for each image.

    Args:
        images: (3, H, W) RGB tensors, uint8 or floating point in 0..1 (rounded to 8 bits), of any
            sizes on one device, or one (N, 3, H, W) tensor of them.
        strategies: searches whose boxes are pooled.

    Returns:
        For each image (P, 4) float32 xyxy boxes in pixels on the image's device. Right and bottom
        edges are exclusive, so the whole image is (0, 0, W, H). Boxes are unique and ranked, best
        first. Equal images give equal boxes, whatever else is in the batch.

    Raises:
        ValueError: an image of another shape or type, floats outside 0..1, an unknown strategy.
    """
    return [boxes for boxes, _ in _search(images, strategies, with_regions=False)]


def selective_search_with_regions(
    images: Sequence[Tensor] | Tensor, strategies: Sequence[Strategy] = SEARCHES["thorough"]
) -> list[tuple[Tensor, RegionMasks]]:
    """The same boxes, and the regions that they stand for; arguments and errors are the same.

    Where regions of several strategies have the same box, the region is that of the best rank.

    Returns:
        For each image the boxes (P, 4) and the regions behind them. No mask is built before
        `RegionMasks.decode` asks for it.
    """
    return _search(images, strategies, with_regions=True)


def _search(
    images: Sequence[Tensor] | Tensor, strategies: Sequence[Strategy], with_regions: bool
) -> list[tuple[Tensor, RegionMasks]]:
    """Boxes and regions of each image; the regions are empty unless they are asked for."""
    for strategy in strategies:
        _check_strategy(strategy)
    pixels = [_to_pixels(image) for image in images]
    found = [(image.new_zeros(0, 4), RegionMasks.empty()) for image in pixels]
    for batch in _batches(pixels):
        of_batch = _search_batch([pixels[i] for i in batch], strategies, with_regions)
        for i, ranked in zip(batch, of_batch, strict=True):
            found[i] = ranked
    return found


def batch_pixels(device: torch.device) -> int:
    """How many pixels a device searches together, at best."""
    return CPU_BATCH_PIXELS if device.type == "cpu" else GPU_BATCH_PIXELS


def _check_strategy(strategy: Strategy) -> None:
    if strategy.colour_space not in COLOUR_SPACES:
        known = ", ".join(COLOUR_SPACES)
        raise ValueError(f"colour_space {strategy.colour_space!r} is unknown; use one of {known}")
    for letters in strategy.similarities or ("",):
        if not letters or not set(letters) <= set(MEASURES):
            raise ValueError(f"similarity {letters!r} must be made of the letters c t s f")


def _to_pixels(image: Tensor) -> Tensor:
    """Convert any image to (3, H, W) float32, whole numbers in 0..255."""
    if image.ndim != 3 or image.shape[0] != 3:
        raise ValueError(f"images must have the shape (3, H, W), got {tuple(image.shape)}")
    if max(image.shape[1:]) > LONGEST_SIDE:
        raise ValueError(f"images must have sides of at most {LONGEST_SIDE} pixels; shrink them")
    if image.is_floating_point():
        if image.numel() and not (image.min() >= 0 and image.max() <= 1):
            raise ValueError("images of floats must be in 0..1; undo the normalisation first")
        return (image.float() * 255).round()
    if image.dtype != torch.uint8:
        raise ValueError(f"images must be uint8 or floating point, got {image.dtype}")
    return image.float()


def _batches(images: Sequence[Tensor]) -> list[list[int]]:
    """Indices of images to search together: of similar shape, and not too many.

    Images without pixels are left out.
    """
    order = [i for i, image in enumerate(images) if image.numel()]
    order.sort(key=lambda i: tuple(images[i].shape))
    batches: list[list[int]] = []
    room = 0
    for i in order:
        pixels = images[i][0].numel()
        if pixels > room:
            batches.append([])
            room = batch_pixels(images[i].device)
        batches[-1].append(i)
        room -= pixels
    return batches


def _search_batch(
    images: list[Tensor], strategies: Sequence[Strategy], with_regions: bool
) -> list[tuple[Tensor, RegionMasks]]:
    """(3, H, W) float32 images to (P, 4) float32 boxes each, ranked, and their regions."""
    image, inside = _pad(images)
    texture = texture_levels(image, inside)
    colours = {s.colour_space: COLOUR_SPACES[s.colour_space](image) for s in strategies}
    parts: list[tuple[Regions, str]] = []
    maps: list[Tensor] = []  # (N, H, W) int32 segments of the images, by strategy
    # Strategies are segmented together as far as there is room: few images then take no more
    # operations for four strategies than for one.
    room = max(1, batch_pixels(image.device) // inside.numel())
    for i in range(0, len(strategies), room):
        together = strategies[i : i + room]
        shades = [colours[strategy.colour_space] for strategy in together]
        for strategy, shade, segmentation in zip(
            together, shades, _segment(shades, inside, together), strict=True
        ):
            regions = describe_regions(segmentation, shade, texture)
            parts += [(regions, letters) for letters in strategy.similarities]
            if with_regions:
                maps.append(segmentation.labels.int())
    hierarchy, image_of = group_regions(parts, inside.flatten(1).sum(dim=1))
    boxes, rows = rank_regions(hierarchy, image_of, len(images))
    if not with_regions:
        return [(own, RegionMasks.empty()) for own in boxes]
    sizes = [(image.shape[1], image.shape[2]) for image in images]
    strategy_of = [i for i, strategy in enumerate(strategies) for _ in strategy.similarities]
    return list(zip(boxes, collect_regions(hierarchy, rows, maps, strategy_of, sizes), strict=True))


def _segment(
    shades: list[Tensor], inside: Tensor, strategies: Sequence[Strategy]
) -> list[Segmentation]:
    """One segmentation of the batch per strategy, from its colours (N, C, H, W)."""
    numbers = torch.tensor([[s.scale, s.min_size] for s in strategies], device=inside.device)
    scale, min_size = numbers.repeat_interleave(len(inside), dim=0).unbind(dim=1)
    inside = inside.repeat(len(strategies), 1, 1)
    return segment(torch.cat(shades), inside, scale, min_size).split(len(strategies))


def _pad(images: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Batch (N, 3, H, W), padded by repeating borders, and which pixels (N, H, W) are inside."""
    height, width = (max(image.shape[axis] for image in images) for axis in (1, 2))
    inside = torch.zeros(len(images), height, width, dtype=torch.bool, device=images[0].device)
    padded = []
    for image, mask in zip(images, inside, strict=True):
        h, w = image.shape[1:]
        mask[:h, :w] = True
        padded.append(functional.pad(image[None], (0, width - w, 0, height - h), "replicate")[0])
    return torch.stack(padded), inside


def rank_boxes(hierarchy: Hierarchy, image_of: Tensor, count: int) -> list[Tensor]:
    """Pool the boxes of all trees of an image: unique, most promising first.

    As in Section 4 of the paper, the largest region of a tree has position 1, the next one 2, and
    so on; positions are multiplied by a factor, and the smallest product comes first. The paper's
    factor is random, so that large boxes do not always win. Here it is small for regions that fill
    their box and differ from what they merged with; it grows with the overlap with a better box, so
    that the first k boxes are spread over the image for any k.

    Args:
        hierarchy: of all trees.
        image_of: (T,) image of each tree.
        count: number of images.

    Returns:
        For each image (P, 4) float32 xyxy.
    """
    return rank_regions(hierarchy, image_of, count)[0]


def rank_regions(
    hierarchy: Hierarchy, image_of: Tensor, count: int
) -> tuple[list[Tensor], list[Tensor]]:
    """The boxes of `rank_boxes`, and for each image the rows (P,) of their regions in the
    hierarchy."""
    area = (hierarchy.box[:, 2:] - hierarchy.box[:, :2]).prod(dim=1)
    fill = hierarchy.size / area  # in 0..1
    score = _positions(hierarchy) * (1.2 - fill) * (0.3 + hierarchy.likeness)
    image = image_of.index_select(0, hierarchy.tree)
    rows = _by_group(score.argsort(stable=True), image)
    boxes, image = hierarchy.box.index_select(0, rows), image.index_select(0, rows)
    new = _are_first(boxes, image).nonzero()[:, 0]
    boxes, image, rows = (part.index_select(0, new) for part in (boxes, image, rows))
    found = torch.bincount(image, minlength=count).tolist()
    ranked: tuple[list[Tensor], list[Tensor]] = ([], [])
    done = 0
    for run in _runs(found, 1 if boxes.device.type == "cpu" else GPU_NMS_BOXES):
        own = slice(done, done + sum(run))
        order = _demote_overlaps(boxes[own], image[own])
        for result, part in zip(ranked, (boxes, rows), strict=True):
            result += part[own].index_select(0, order).split(run)
        done = own.stop
    return ranked


def _runs(counts: list[int], most: int) -> list[list[int]]:
    """Cut a list of boxes per image into runs of at most `most` boxes, or of one image."""
    runs: list[list[int]] = []
    for count in counts:
        if not runs or sum(runs[-1]) + count > most or len(runs[-1]) == NMS_IMAGES:
            runs.append([])
        runs[-1].append(count)
    return runs


def _by_group(order: Tensor, group: Tensor) -> Tensor:
    """`order` (P,) of rows, those of the first group (P,) first; within a group as it is."""
    return order.index_select(0, group.index_select(0, order).argsort(stable=True))


def _places(group: Tensor) -> Tensor:
    """(P,) 0, 1, ... for the rows of each group; they must be sorted by group (P,)."""
    members = torch.bincount(group)
    first = members.cumsum(0) - members
    return torch.arange(len(group), device=group.device) - first.index_select(0, group)


def _positions(hierarchy: Hierarchy) -> Tensor:
    """(G,) 1 for the largest region of its tree, 2 for the next; of equals, the newest first."""
    order = len(hierarchy) - 1 - torch.arange(len(hierarchy), device=hierarchy.size.device)
    order = order[hierarchy.size[order].argsort(descending=True, stable=True)]
    order = _by_group(order, hierarchy.tree)
    place = _places(hierarchy.tree.index_select(0, order))
    position = torch.empty_like(hierarchy.size)
    position[order] = (place + 1).float()
    return position


def _are_first(boxes: Tensor, image: Tensor) -> Tensor:
    """(P,) whether no earlier row has the same box (P, 4) in the same image (P,)."""
    places = torch.tensor([1, 2**15, 2**30, 2**45], device=boxes.device)
    code = (boxes.long() * places).sum(dim=1)  # one number per box; sides are at most 2^14
    order = _by_group(code.argsort(stable=True), image)
    again = torch.ones_like(code, dtype=torch.bool)
    for values in (code, image):
        ordered = values.index_select(0, order)
        again[1:] &= ordered[1:] == ordered[:-1]
    again[:1] = False
    return torch.empty_like(again).index_copy_(0, order, ~again)


def _demote_overlaps(boxes: Tensor, image: Tensor) -> Tensor:
    """(P,) order in which boxes (P, 4) that overlap better ones of their image (P,) are further
    down the image's list."""
    place = torch.arange(len(boxes), device=boxes.device)
    # Side by side, boxes of different images do not overlap; the sums are exact, see NMS_IMAGES.
    apart = boxes + ((image - image[:1]) * LONGEST_SIDE).float()[:, None]
    factor = torch.full((len(boxes),), DEMOTIONS[-1][1], device=boxes.device)
    left = place
    for iou, times in DEMOTIONS[::-1]:
        factor.index_fill_(0, left, times)
        left = left.index_select(0, nms(apart.index_select(0, left), -left.float(), iou))
    factor.index_fill_(0, left, 1)
    order = ((_places(image - image[:1]) + HEAD_START) * factor).argsort(stable=True)
    return _by_group(order, image)
