"""Projectors: used instead of a detector's classification layer in box-domain pre-training.

A projector is layer - ReLU - layer, from the features that the classification layer reads to one
embedding per prediction (AlignDet, section 3.3). Fine-tuning drops it.

Legend: N images, C channels of a tower, F features of an RoI, B anchors per cell, D embedding
width, R RoIs, S samples.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from models.anchors import flatten_predictions


def conv_projector(channels: int, width: int) -> nn.Sequential:
    """(N, C, H, W) to (N, D, H, W), one embedding per position. The hidden layer has the same
    receptive field as the classification layer."""
    return _initialised(
        nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(), nn.Conv2d(channels, width, 1)
    )


def fc_projector(features: int, width: int) -> nn.Sequential:
    """(R, F) to (R, D), one embedding per RoI."""
    return _initialised(nn.Linear(features, features), nn.ReLU(), nn.Linear(features, width))


class AnchorProjector(nn.Module):
    """One embedding per chosen anchor; the last layer runs on the cells of these anchors only.

    Embedding all anchors would take too much memory: the 100,000 of an 800 px image take 100 MB at
    D = 256, several times that with gradients, and only a few thousand are contrasted.
    """

    def __init__(self, channels: int, anchors_per_cell: int, width: int) -> None:
        super().__init__()
        self.anchors_per_cell = anchors_per_cell
        convolution = nn.Conv2d(channels, channels, 3, padding=1)
        self.layers = _initialised(
            convolution, nn.ReLU(), nn.Linear(channels, anchors_per_cell * width)
        )

    def forward(self, features: Sequence[Tensor], chosen: Tensor) -> Tensor:
        """Embed the chosen anchors, without normalisation.

        Args:
            features: class features (N, C, H_i, W_i) of each level.
            chosen: (S,) indices into the anchors of all images, image by image, in the order of
                `models.anchors.grid_anchors`.

        Returns:
            (S, D).
        """
        convolution, relu, linear = self.layers
        cells = flatten_predictions([relu(convolution(x)) for x in features], per_cell=1)
        cell, anchor = chosen // self.anchors_per_cell, chosen % self.anchors_per_cell
        embeddings = linear(cells.flatten(0, 1)[cell]).unflatten(1, (self.anchors_per_cell, -1))
        return embeddings.take_along_dim(anchor[:, None, None], dim=1).squeeze(1)


def _initialised(first: nn.Module, activation: nn.Module, second: nn.Module) -> nn.Sequential:
    for layer in (first, second):
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        nn.init.zeros_(layer.bias)
    return nn.Sequential(first, activation, second)
