"""Object queries that are boxes: with them DETR learns in a fraction of the steps.

A learned query says nothing about a place at first, so a detector must learn both where to look and
what to see. Here a query is an anchor: its place is encoded as that of the cells is (Liu et al.,
"DAB-DETR", ICLR 2022), it attends to cells the more the nearer they are (Gao et al., "Fast
convergence of DETR with spatially modulated co-attention", ICCV 2021), and boxes are predicted
relative to it.

Legend: N images, Q queries, S cells of a map, C channels.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from models.position import sine_of

SIDE = 0.3  # of the anchors at first, as a fraction of the image


class AnchorEncoding(nn.Module):
    """From anchors to what the transformer takes for queries."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.layers = nn.Sequential(
            nn.Linear(2 * width, width), nn.ReLU(inplace=True), nn.Linear(width, width)
        )

    def forward(self, anchors: Tensor) -> Tensor:
        """Logits (Q, 4) of cx, cy, w, h to (Q, C)."""
        waves = sine_of(anchors.sigmoid() * (2 * math.pi), self.width // 2)  # (Q, 4, C / 2)
        return self.layers(waves.flatten(1).to(self.layers[0].weight.dtype))


def anchor_grid(count: int) -> Tensor:
    """The first anchors: centres spread over the image, all of one size; logits (Q, 4)."""
    columns = math.ceil(count**0.5)
    rows = math.ceil(count / columns)
    number = torch.arange(count)
    x = (number % columns + 0.5) / columns
    y = (number // columns + 0.5) / rows
    side = torch.full((count,), SIDE)
    return torch.logit(torch.stack((x, y, side, side), dim=1))


def nearness(
    anchors: Tensor, heights: Tensor, widths: Tensor, map_size: tuple[int, int], stride: int
) -> Tensor:
    """What is added to the logits of attention: a Gaussian around each anchor, whose standard
    deviations are half its sides.

    Args:
        anchors: logits (Q, 4); constants here.
        heights, widths: (N,) true ones of the images, in pixels.
        map_size, stride: of the map.

    Returns:
        (N, Q, S) float32, at most 0.
    """
    cx, cy, w, h = anchors.detach().float().sigmoid().unbind(1)  # (Q,) each
    of_sides = []
    for count, lengths, centre, side in (
        (map_size[0], heights, cy, h),
        (map_size[1], widths, cx, w),
    ):
        place = (torch.arange(count, device=anchors.device) + 0.5) * stride / lengths[:, None]
        of_sides.append(((place[:, None] - centre[:, None]) / (side[:, None] / 2)) ** 2)
    rows, columns = of_sides  # (N, Q, H), (N, Q, W)
    return -0.5 * (rows[..., :, None] + columns[..., None, :]).flatten(2)
