"""The transformer of DETR (Carion et al., ECCV 2020, supplement A.3).

It is that of Vaswani et al., "Attention is all you need", but for positions, which are added to
queries and keys in every attention, and not once to the input.

Legend: N images, S cells of a map, Q object queries, T queries of an attention, C channels, L
decoder layers.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Transformer(nn.Module):
    """Encoder over the cells of a map, decoder from object queries."""

    def __init__(
        self,
        width: int,
        heads: int,
        encoder_layers: int,
        decoder_layers: int,
        feedforward: int,
        dropout: float,
        pre_norm: bool,
    ) -> None:
        super().__init__()
        layer = (width, heads, feedforward, dropout, pre_norm)
        self.encoder = nn.ModuleList(EncoderLayer(*layer) for _ in range(encoder_layers))
        self.decoder = nn.ModuleList(DecoderLayer(*layer) for _ in range(decoder_layers))
        # With post-norm, every layer of the encoder ends in a norm already.
        self.encoder_norm = nn.LayerNorm(width) if pre_norm else nn.Identity()
        self.decoder_norm = nn.LayerNorm(width)

    def encode(self, cells: Tensor, positions: Tensor, inside: Tensor) -> Tensor:
        """Let the cells of an image attend to each other.

        Args:
            cells: (N, S, C) features of a map.
            positions: (N, S, C) encodings of the cells' places.
            inside: (N, S) bool; cells that are not inside their image are not attended to.

        Returns:
            (N, S, C).
        """
        for layer in self.encoder:
            cells = layer(cells, positions, inside)
        return self.encoder_norm(cells)

    def decode(self, memory: Tensor, positions: Tensor, inside: Tensor, queries: Tensor) -> Tensor:
        """Objects from what the encoder made of the cells.

        Args:
            memory: (N, S, C) from `encode`.
            positions, inside: as there.
            queries: (Q, C), what stands for the place of each object, the same for all images.

        Returns:
            (L, N, Q, C), normalised, of every decoder layer.
        """
        queries = queries.expand(memory.shape[0], -1, -1)
        objects, of_layers = torch.zeros_like(queries), []
        for layer in self.decoder:
            objects = layer(objects, queries, memory, positions, inside)
            of_layers.append(self.decoder_norm(objects))
        return torch.stack(of_layers)


class Attention(nn.Module):
    """Multi-head attention (Vaswani et al., section 3.2)."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.query, self.key, self.value, self.output = (nn.Linear(width, width) for _ in range(4))
        for projection in (self.query, self.key, self.value):
            # As one (3 C, C) matrix, in which PyTorch and DETR keep and initialise the three.
            nn.init.xavier_uniform_(projection.weight, gain=0.5**0.5)
            nn.init.zeros_(projection.bias)
        nn.init.xavier_uniform_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(
        self, queries: Tensor, keys: Tensor, values: Tensor, attended: Tensor | None = None
    ) -> Tensor:
        """Weighted means of values.

        Args:
            queries: (N, T, C).
            keys, values: (N, S, C).
            attended: (N, S) bool, at least one true per image; or (N, heads, T, S), what to add to
                the logits; None attends to all alike.

        Returns:
            (N, T, C).
        """
        q, k, v = (
            projection(x).unflatten(2, (self.heads, -1)).transpose(1, 2)  # (N, heads, T or S, D)
            for projection, x in ((self.query, queries), (self.key, keys), (self.value, values))
        )
        mask = attended
        if attended is not None and attended.ndim == 2:
            mask = attended[:, None, None]  # (N, 1, 1, S)
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(q, k, v, mask, dropout)  # (N, heads, T, D)
        return self.output(mixed.transpose(1, 2).flatten(2))


class Layer(nn.Module):
    """Base of the layers: blocks with a shortcut around each, and the last block."""

    def __init__(self, width: int, feedforward: int, dropout: float, pre_norm: bool) -> None:
        super().__init__()
        self.pre_norm = pre_norm
        self.dropout = nn.Dropout(dropout)
        self.feedforward = nn.Sequential(
            nn.Linear(width, feedforward),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(feedforward, width),
        )
        nn.init.xavier_uniform_(self.feedforward[0].weight)
        nn.init.xavier_uniform_(self.feedforward[3].weight)

    def around(self, x: Tensor, norm: nn.Module, block: Callable[[Tensor], Tensor]) -> Tensor:
        """A block, the shortcut around it, and the norm behind both or in front of the block."""
        if self.pre_norm:
            return x + self.dropout(block(norm(x)))
        return norm(x + self.dropout(block(x)))


class EncoderLayer(Layer):
    """Cells attend to cells, then each passes through two linear layers."""

    def __init__(
        self, width: int, heads: int, feedforward: int, dropout: float, pre_norm: bool
    ) -> None:
        super().__init__(width, feedforward, dropout, pre_norm)
        self.self_attention = Attention(width, heads, dropout)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, cells: Tensor, positions: Tensor, inside: Tensor) -> Tensor:
        """(N, S, C) to (N, S, C), see `Transformer.encode`."""

        def attend(x: Tensor) -> Tensor:
            placed = x + positions
            return self.self_attention(placed, placed, x, inside)

        cells = self.around(cells, self.norm1, attend)
        return self.around(cells, self.norm2, self.feedforward)


class DecoderLayer(Layer):
    """Objects attend to objects, then to cells, then each passes through two linear layers."""

    def __init__(
        self, width: int, heads: int, feedforward: int, dropout: float, pre_norm: bool
    ) -> None:
        super().__init__(width, feedforward, dropout, pre_norm)
        self.self_attention = Attention(width, heads, dropout)
        self.cross_attention = Attention(width, heads, dropout)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))

    def forward(
        self, objects: Tensor, queries: Tensor, memory: Tensor, positions: Tensor, attended: Tensor
    ) -> Tensor:
        """Objects (N, Q, C) to (N, Q, C); `queries` (N, Q, C) are their places, `memory` (N, S, C)
        is what the encoder made of the cells, `attended` as in `Attention`; see
        `Transformer.decode`."""

        def attend_to_objects(x: Tensor) -> Tensor:
            return self.self_attention(x + queries, x + queries, x)

        def attend_to_cells(x: Tensor) -> Tensor:
            return self.cross_attention(x + queries, memory + positions, memory, attended)

        objects = self.around(objects, self.norm1, attend_to_objects)
        objects = self.around(objects, self.norm2, attend_to_cells)
        return self.around(objects, self.norm3, self.feedforward)
