"""Features by which selective search compares regions: colour and texture histograms, size and box.

Source: Uijlings et al., "Selective Search for Object Recognition", IJCV 2013, Section 3.2.

Legend: N images, H, W height and width, R regions, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from data.selective_search.colour_spaces import divide
from data.selective_search.segmentation import Segmentation, blur

COLOUR_BINS = 25  # per channel
TEXTURE_BINS = 10  # per channel and direction
STEEPEST = 50.0  # levels per pixel; slopes from here up share the last bin
EXACT = 2**16  # histograms are multiples of 1 / EXACT, so that sums of them are exact


@dataclass(frozen=True)
class Regions:
    """The regions of a batch of images; the numbers run through all images."""

    image: Tensor  # (R,) int64, which image
    size: Tensor  # (R,) float32 pixels
    box: Tensor  # (R, 4) float32 xyxy, right and bottom exclusive
    colour: Tensor  # (R, C * 25) float32, sums to 1
    texture: Tensor  # (R, 4 * 10) float32, sums to 1
    pairs: Tensor  # (2, pairs) int64 numbers of neighbours


def describe_regions(segmentation: Segmentation, colours: Tensor, texture: Tensor) -> Regions:
    """Measure every region.

    Args:
        segmentation: of the batch.
        colours: (N, C, H, W) float32 in 0..255, for the colour histograms.
        texture: (N, 4, H, W), see `texture_levels`.
    """
    labels = segmentation.labels
    where = labels.flatten().ge(0).nonzero()[:, 0]
    region = labels.flatten().index_select(0, where)  # of each pixel of an image
    size = torch.bincount(region, minlength=segmentation.count).float()
    shade = (colours * (COLOUR_BINS / 256)).clamp(0, COLOUR_BINS - 1).long()
    image = torch.zeros(len(size), dtype=torch.int64, device=size.device)
    image[region] = where // labels[0].numel()
    return Regions(
        image=image,
        size=size,
        box=_boxes(region, where, labels.shape[1:], len(size)),
        colour=_histogram(region, where, shade, COLOUR_BINS, size),
        texture=_histogram(region, where, texture, TEXTURE_BINS, size),
        pairs=segmentation.pairs,
    )


def texture_levels(image: Tensor, inside: Tensor) -> Tensor:
    """Bins of how steeply the brightness rises towards each of the four sides.

    Args:
        image: (N, 3, H, W) RGB in 0..255.
        inside: (N, H, W) bool; padding is not a neighbour.

    Returns:
        (N, 4, H, W) int64 in 0..9.
    """
    grey = blur(divide(image.sum(dim=1, keepdim=True), 3))[:, 0]  # (N, H, W)
    slopes = []
    for axis in (1, 2):
        step = torch.where(inside, grey, 0).diff(dim=axis)
        step *= inside.narrow(axis, 1, step.shape[axis])  # none across the border
        nothing = torch.zeros_like(grey.narrow(axis, 0, 1))
        slope = (torch.cat([nothing, step], axis) + torch.cat([step, nothing], axis)) / 2
        slopes += [slope.clamp(min=0), (-slope).clamp(min=0)]
    slopes = torch.stack(slopes, dim=1)
    return (slopes * (TEXTURE_BINS / STEEPEST)).long().clamp(max=TEXTURE_BINS - 1)


def round_histogram(histogram: Tensor) -> Tensor:
    """Round to multiples of 2^-16: sums of shares then do not depend on their order."""
    return (histogram * EXACT).round() / EXACT


def _histogram(region: Tensor, where: Tensor, levels: Tensor, bins: int, size: Tensor) -> Tensor:
    """Bins (N, C, H, W) of the pixels `where` to (R, C * bins) histograms that sum to 1."""
    channels = levels.shape[1]
    level = levels.transpose(0, 1).flatten(1).index_select(1, where)  # (C, pixels)
    channel = torch.arange(channels, device=region.device)[:, None]
    slot = (region * channels + channel) * bins + level
    counts = torch.bincount(slot.flatten(), minlength=len(size) * channels * bins)
    return round_histogram(counts.view(len(size), -1) / (channels * size[:, None]))


def _boxes(region: Tensor, where: Tensor, shape: tuple[int, int], count: int) -> Tensor:
    """(R, 4) float32 xyxy of the pixels of every region."""
    height, width = shape
    x = (where % width).float()
    y = (where // width % height).float()
    box = torch.full((4, count), torch.inf, device=region.device)
    for row, place in zip(box, (x, y, -x - 1, -y - 1), strict=True):
        row.scatter_reduce_(0, region, place, "amin")
    box[2:] *= -1
    return box.T.contiguous()
