"""Object queries that are boxes: with them DETR learns in a fraction of the steps.

A learned query says nothing about a place at first, so a detector must learn both where to look and
what to see. Here a query is an anchor, a box that every decoder layer improves (Liu et al.,
"DAB-DETR", ICLR 2022), and each head of the attention looks at a part of it (as in Gao et al.,
"Fast convergence of DETR with spatially modulated co-attention", ICCV 2021).

Anchors are logits of cx, cy, w, h in fractions of the true image's width and height.

Legend: N images, Q queries, S cells of a map, L cells along one side, C channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from models.position import sine_of
from models.transformer import Transformer

SIDE = 0.3  # of the anchors at first, as a fraction of the image


def anchor_grid(count: int) -> Tensor:
    """The first anchors, (Q, 4): centres spread over the image, all of one size."""
    columns = math.ceil(count**0.5)
    rows = math.ceil(count / columns)
    number = torch.arange(count)
    x = (number % columns + 0.5) / columns
    y = (number // columns + 0.5) / rows
    side = torch.full((count,), SIDE)
    return torch.logit(torch.stack((x, y, side, side), dim=1))


class Map(NamedTuple):
    """What the encoder made of the map of a batch of images."""

    memory: Tensor  # (N, S, C)
    positions: Tensor  # (N, S, C), encodings of the cells' places
    inside: Tensor  # (N, S) bool, whether a cell is in its image
    heights: Tensor  # (N,) true ones of the images, in pixels
    widths: Tensor  # (N,)
    size: tuple[int, int]  # cells per column and per row
    stride: int


class AnchorQueries(nn.Module):
    """The decoder's story with anchors, and the layers that this adds."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.width = width
        self.heads = heads
        self.encoding = nn.Sequential(
            nn.Linear(2 * width, width), nn.ReLU(inplace=True), nn.Linear(width, width)
        )

    def decode(
        self,
        transformer: Transformer,
        regress: Callable[[Tensor], Tensor],
        cells: Map,
        anchors: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Objects from anchors, layer by layer.

        Args:
            transformer: its decoder is used.
            regress: from objects (N, Q, C) to changes of their anchors (N, Q, 4).
            cells: what the encoder made of the map.
            anchors: (Q, 4), of the first layer.

        Returns:
            objects (L, N, Q, C) of all L decoder layers, normalised, and their boxes (L, N, Q, 4),
            float32 logits.
        """
        anchors = anchors.float().expand(cells.memory.shape[0], -1, -1)
        objects = cells.memory.new_zeros(*anchors.shape[:2], self.width)
        decoded, boxes = [], []
        for layer in transformer.decoder:
            near = nearness(anchors, self.heads, cells).to(objects.dtype)
            attended = near.masked_fill(~cells.inside[:, None, None], -torch.inf)
            places = self.encode(anchors)
            objects = layer(objects, places, cells.memory, cells.positions, attended)
            decoded.append(transformer.decoder_norm(objects))
            boxes.append(anchors + regress(decoded[-1]).float())
            anchors = boxes[-1].detach()  # each layer answers for its own change
        return torch.stack(decoded), torch.stack(boxes)

    def encode(self, anchors: Tensor) -> Tensor:
        """What the transformer takes for the queries (N, Q, C) of anchors (N, Q, 4)."""
        waves = sine_of(anchors.sigmoid() * (2 * math.pi), self.width // 2)  # (N, Q, 4, C / 2)
        return self.encoding(waves.flatten(2).to(self.encoding[0].weight.dtype))


@torch.no_grad()
def nearness(anchors: Tensor, heads: int, cells: Map) -> Tensor:
    """What is added to the logits of attention: each head looks at a place of its own on the
    ellipse in the anchor, so that together they see where an object begins and ends.

    It is the logarithm of a Gaussian around that place, whose standard deviations are a quarter of
    the anchor's sides.

    Args:
        anchors: (N, Q, 4); constants here.
        heads: of the attention.
        cells: of the map.

    Returns:
        (N, heads, Q, S) float32, at most 0.
    """
    cx, cy, w, h = anchors.sigmoid()[:, None].unbind(3)  # (N, 1, Q) each
    angle = torch.arange(heads, device=anchors.device)[:, None] * (2 * math.pi / heads)
    x, y = cx + w / 2 * angle.cos(), cy + h / 2 * angle.sin()  # (N, heads, Q)
    rows = _squared_distance(y, h / 4, cells.heights, cells.size[0], cells.stride)
    columns = _squared_distance(x, w / 4, cells.widths, cells.size[1], cells.stride)
    return -0.5 * (rows[..., :, None] + columns[..., None, :]).flatten(3)


def _squared_distance(
    centre: Tensor, deviation: Tensor, lengths: Tensor, count: int, stride: int
) -> Tensor:
    """Of `count` cells along one side from centres (N, heads, Q), in standard deviations (N, 1, Q):
    (N, heads, Q, L)."""
    place = (torch.arange(count, device=centre.device) + 0.5) * stride / lengths[:, None]  # (N, L)
    return ((place[:, None, None] - centre[..., None]) / deviation[..., None]) ** 2
