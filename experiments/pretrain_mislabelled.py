"""`pretrain.py` with an error of the authors' code put back in: RetinaNet's instance ids in
a different order from its embeddings. It is here only to measure what the error costs.

The authors list the ids image by image, but the embeddings level by level (all images of the finest
level, then of the next). So in a batch of several images nearly every id meets the embedding of
another anchor.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

import pretrain
from aligndet.adapters import ADAPTERS, RetinaNetAdapter
from aligndet.projectors import AnchorProjector


def level_by_level(images: int, anchors_of_level: Sequence[int]) -> Tensor:
    """Which anchor is at each place of a list ordered level by level.

    Args:
        images: N.
        anchors_of_level: anchors of one image on each level; A is their sum.

    Returns:
        (N * A,) indices into the list that runs image by image.
    """
    index = torch.arange(images * sum(anchors_of_level)).view(images, -1)  # (N, A)
    return torch.cat([level.flatten() for level in index.split(list(anchors_of_level), dim=1)])


class MislabelledProjector(AnchorProjector):
    """For an id at some place in one list, embeds the anchor at that place in the other."""

    def forward(self, features: Sequence[Tensor], chosen: Tensor) -> Tensor:
        """See `AnchorProjector.forward`."""
        anchors = [x.shape[2] * x.shape[3] * self.anchors_per_cell for x in features]
        order = level_by_level(len(features[0]), anchors).to(chosen.device)
        return super().forward(features, order[chosen])


class MislabelledAdapter(RetinaNetAdapter):
    """RetinaNet's adapter with the error."""

    def build_projector(self, width: int) -> MislabelledProjector:
        """See `RetinaNetAdapter.build_projector`."""
        channels, anchors = self.detector.config.channels, self.detector.head.num_anchors
        return MislabelledProjector(channels, anchors, width)


if __name__ == "__main__":
    ADAPTERS["retinanet"] = MislabelledAdapter
    pretrain.main()
