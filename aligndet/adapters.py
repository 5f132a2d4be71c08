"""How AlignDet pre-trains each detector: one adapter a detector (AlignDet, section 3.3).

A detector in ``models/`` knows nothing of AlignDet. Its adapter puts a projector in the place of
the classification layer, and says which predictions are embedded, how they get instance ids, and
which box losses apply. It works on the features of the backbone, which is frozen and shared by the
online and the target branch.

Legend: N images, A points or anchors, M boxes, S samples, C channels, D embedding width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from models.assign import BACKGROUND
from models.choices import require_choice
from models.fcos import FCOS
from models.sampling import sample_balanced


class BranchOutput(NamedTuple):
    """What one branch makes of one view."""

    embeddings: Tensor  # (S, D) L2-normalised, float32
    ids: Tensor  # (S,) instance id >= 0, or -1 for background
    losses: dict[str, Tensor]  # the detector's own box losses; empty for the target branch
    positives: int  # predictions assigned to a box, sampled or not


def conv_projector(channels: int, width: int) -> nn.Sequential:
    """Conv - ReLU - conv to one embedding a position; the hidden layer looks as far as the
    classification layer it replaces."""
    projector = nn.Sequential(
        nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(), nn.Conv2d(channels, width, 1)
    )
    for layer in projector[::2]:
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        nn.init.zeros_(layer.bias)
    return projector


def ids_of_matched(matched: Tensor, ids: Sequence[Tensor]) -> Tensor:
    """Look instance ids up where fine-tuning looks class labels up.

    Args:
        matched: (N, A) index of the assigned box within its image, -1 background, -2 ignore.
        ids: (M,) instance ids of the boxes of each image.

    Returns:
        (N, A) instance ids; negative entries stay as they are.
    """
    result = matched.clone()
    for row, image_ids in zip(result, ids, strict=True):
        positive = row >= 0
        row[positive] = image_ids[row[positive]]
    return result


class FCOSAdapter(nn.Module):
    """FCOS: every point of the pyramid is embedded, and belongs to the box it is assigned to."""

    samples = 2048  # of a batch, positives first
    replaced = ("head.cls_logits.",)  # the projector here, a fresh classifier in fine-tuning
    box_outputs = ("head.box_regression.", "head.centerness.")

    def __init__(self, detector: FCOS, width: int, samples: int | None = None) -> None:
        super().__init__()
        self.detector = detector
        detector.head.cls_logits = conv_projector(detector.config.channels, width)
        self.samples = samples or self.samples

    def forward(
        self,
        features: Sequence[Tensor],
        image_sizes: Tensor,
        boxes: Sequence[Tensor],
        ids: Sequence[Tensor],
        with_losses: bool,
    ) -> BranchOutput:
        """One view through neck, towers and projector.

        Args:
            features: [C2, C3, C4, C5] of the frozen backbone.
            image_sizes: (N, 2) true sizes; FCOS does not need them.
            boxes: (M, 4) xyxy proposals of each image, in pixels of this view.
            ids: (M,) their instance ids, unique in the batch.
            with_losses: whether the box losses are wanted (online branch) or not (target).
        """
        detector, head = self.detector, self.detector.head
        pyramid = detector.neck(features[1:])
        cls_features, box_features = head.towers(pyramid)
        embeddings = head.logits_from(cls_features)  # (N, A, D)
        points, strides = detector.points_for(pyramid)
        matched = detector.assign(points, strides, boxes)  # (N, A) box index or BACKGROUND
        point_ids = ids_of_matched(matched, ids).flatten()  # (N * A,) image-major, like embeddings
        chosen = sample_balanced(point_ids, self.samples, positive_fraction=1.0)
        losses = {}
        if with_losses:
            distances, centerness = head.boxes_from(box_features)
            losses = detector.box_losses(distances, centerness, points, matched, boxes)
        return BranchOutput(
            F.normalize(embeddings.flatten(0, 1)[chosen].float(), dim=1),
            point_ids[chosen],
            losses,
            int((matched != BACKGROUND).sum()),
        )


ADAPTERS = {"fcos": FCOSAdapter}


def adapter_class(detector: str) -> type[FCOSAdapter]:
    """The adapter of a detector.

    Raises:
        ValueError: the detector cannot be pre-trained.
    """
    require_choice("model.detector for pre-training", detector, ADAPTERS)
    return ADAPTERS[detector]
