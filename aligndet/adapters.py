"""How AlignDet pre-trains each detector: one adapter a detector (AlignDet, section 3.3).

A detector in ``models/`` knows nothing of AlignDet. Its adapter puts a projector in the place of
the classification layer, and says which predictions are embedded, how they get instance ids, and
which box losses apply. It works on the features of the backbone, which is frozen and shared by the
online and the target branch.

Legend: N images, A points or anchors, R RoIs, P positive RoIs, M boxes, S samples, D embedding
width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aligndet.feature_scale import FeatureScale
from aligndet.projectors import AnchorProjector, conv_projector, fc_projector
from models.assign import matched_values
from models.choices import require_choice
from models.faster_rcnn import FasterRCNN, add_boxes
from models.fcos import FCOS
from models.retinanet import RetinaNet
from models.sampling import random_part, sample_balanced


class BranchOutput(NamedTuple):
    """What one branch makes of one view."""

    embeddings: Tensor  # (S, D) L2-normalised, float32
    ids: Tensor  # (S,) instance id >= 0, or -1 for background
    losses: dict[str, Tensor]  # the detector's own box losses; empty for the target branch
    positives: int  # predictions assigned to a box, sampled or not


class Adapter(nn.Module):
    """Base of the adapters.

    Args:
        detector: built by ``models.build_detector``; taken over and changed. Its ``backbone`` is
            not used.
        width: D.
        samples: how many predictions are contrasted; None for the paper's number, ``samples``.
    """

    samples: int  # the paper's number
    replaced: tuple[str, ...]  # weights of the projector here, of a fresh classifier in fine-tuning
    box_outputs: tuple[str, ...]  # weights of the last layers of the box branch
    feature_stack: str  # the layers, ending in a ReLU, that make what the projector reads
    other_readers: tuple[str, ...] = ()  # weights of what else reads that, and is kept
    detector: nn.Module

    def __init__(self, detector: nn.Module, width: int, samples: int | None = None) -> None:
        super().__init__()
        self.detector = detector
        self.samples = samples or self.samples
        self.scale = FeatureScale()
        self.insert_projector(width)

    def insert_projector(self, width: int) -> None:
        """Put a projector in the place of the detector's classification layer."""
        raise NotImplementedError

    @classmethod
    def class_layers(cls, detector: nn.Module) -> tuple[str, ...]:
        """Weights of ``detector`` that mean something for its own classes only."""
        return cls.replaced

    @property
    def free_layer(self) -> str | None:
        """The layer that sets the size of what the projector reads; None if a norm does."""
        stack = self.detector.get_submodule(self.feature_stack)
        before_relu = len(stack) - 2
        if before_relu < 0 or not isinstance(stack[before_relu], (nn.Conv2d, nn.Linear)):
            return None
        return f"{self.feature_stack}.{before_relu}."

    def weights(self) -> dict[str, Tensor]:
        """State of the detector, in which what the projector read is as large as at the start.

        All other predictions stay: what else reads these features is scaled the other way.
        """
        state, layer = self.detector.state_dict(), self.free_layer
        if layer is None:
            return state
        growth = self.scale.growth()
        for name, value in state.items():
            if name.startswith(layer):
                state[name] = value / growth
            elif name in self.other_readers:
                state[name] = value * growth
        return state

    def forward(
        self,
        features: Sequence[Tensor],
        image_sizes: Tensor,
        boxes: Sequence[Tensor],
        ids: Sequence[Tensor],
        with_losses: bool,
    ) -> BranchOutput:
        """One view through neck, head and projector.

        Args:
            features: [C2, C3, C4, C5] of the backbone.
            image_sizes: (N, 2) true (height, width) before padding, in pixels.
            boxes: (M, 4) xyxy proposals of each image, in pixels of this view.
            ids: (M,) their instance ids, unique in the batch.
            with_losses: whether the box losses are wanted (online branch) or not (target).
        """
        raise NotImplementedError


class FCOSAdapter(Adapter):
    """FCOS: every point of the pyramid is embedded, and belongs to the box it is assigned to."""

    samples = 2048  # points of a batch, positives first
    replaced = ("head.cls_logits.",)
    feature_stack = "head.cls_tower"
    box_outputs = ("head.box_regression.", "head.centerness.")
    detector: FCOS

    def insert_projector(self, width: int) -> None:
        """One embedding a point."""
        self.detector.head.cls_logits = conv_projector(self.detector.config.channels, width)

    def forward(self, features, image_sizes, boxes, ids, with_losses) -> BranchOutput:
        """See ``Adapter.forward``."""
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
            unit_length(embeddings.flatten(0, 1)[chosen]),
            point_ids[chosen],
            losses,
            int((matched >= 0).sum()),
        )


class RetinaNetAdapter(Adapter):
    """RetinaNet: every anchor has an embedding, and belongs to the box it overlaps most."""

    samples = 2048  # anchors of an image, positives first
    replaced = ("head.cls_logits.",)
    feature_stack = "head.cls_tower"
    box_outputs = ("head.box_regression.",)
    detector: RetinaNet

    def insert_projector(self, width: int) -> None:
        """One embedding an anchor."""
        head, channels = self.detector.head, self.detector.config.channels
        head.cls_logits = AnchorProjector(channels, head.num_anchors, width)

    def forward(self, features, image_sizes, boxes, ids, with_losses) -> BranchOutput:
        """See ``Adapter.forward``."""
        detector, head = self.detector, self.detector.head
        pyramid = detector.neck(features[1:])
        cls_features, box_features = head.towers(pyramid)
        anchors = detector.anchors_for(pyramid)  # (A, 4)
        matched = detector.assign(anchors, boxes)  # (N, A) box index, BACKGROUND or IGNORE
        anchor_ids = ids_of_matched(matched, ids)  # (N, A)
        of_image = [sample_balanced(row, self.samples, positive_fraction=1.0) for row in anchor_ids]
        # (S,) indices into the anchors of all images, one image after the other.
        chosen = torch.cat([n * len(anchors) + index for n, index in enumerate(of_image)])
        losses = {}
        if with_losses:
            if self.free_layer is not None:
                self.scale.observe(cls_features)
            deltas = head.deltas_from(box_features)
            losses = detector.box_losses(deltas, anchors, matched, boxes)
        return BranchOutput(
            unit_length(head.cls_logits(cls_features, chosen)),
            anchor_ids.flatten()[chosen],
            losses,
            int((matched >= 0).sum()),
        )


class FasterRCNNAdapter(Adapter):
    """Faster R-CNN: the RPN learns to find the boxes, and every RoI that overlaps one enough is
    embedded. RoIs are the RPN's own proposals and the boxes themselves; none is background."""

    samples = 4096  # RoIs of an image; `model.options.rpn_samples` is for the RPN's own losses
    replaced = ("roi_head.classifier.",)
    feature_stack = "roi_head.fcs"
    other_readers = ("roi_head.box_regression.weight",)
    box_outputs = ("roi_head.box_regression.",)
    detector: FasterRCNN

    @classmethod
    def class_layers(cls, detector: FasterRCNN) -> tuple[str, ...]:
        """The classifier, and the box output if it has a box for each class."""
        return cls.replaced + (() if detector.config.class_agnostic else cls.box_outputs)

    def insert_projector(self, width: int) -> None:
        """One embedding an RoI."""
        width_in = self.detector.config.box_features
        self.detector.roi_head.classifier = fc_projector(width_in, width)

    def forward(self, features, image_sizes, boxes, ids, with_losses) -> BranchOutput:
        """See ``Adapter.forward``."""
        rpn, roi_head, config = self.detector.rpn, self.detector.roi_head, self.detector.config
        pyramid = self.detector.neck(features)
        proposed = rpn(pyramid)
        found = rpn.propose(proposed, image_sizes, config.topk_train, config.proposals_train)
        rois = add_boxes(found, boxes)
        matched = roi_head.assign(rois, boxes)  # (R,) box index or BACKGROUND, of each image
        chosen = [random_part((m >= 0).nonzero().flatten(), self.samples) for m in matched]
        rois = [r[index] for r, index in zip(rois, chosen, strict=True)]
        roi_matched = [m[index] for m, index in zip(matched, chosen, strict=True)]
        box_features = roi_head.box_features(pyramid[:-1], rois)  # (P, F)
        losses = {}
        if with_losses:
            self.scale.observe([box_features])
            deltas = roi_head.deltas_from(box_features)
            losses = rpn.losses(proposed, boxes)
            # Divided by the number of positives here, since no other RoIs are sampled.
            losses |= roi_head.box_losses(deltas, rois, roi_matched, boxes)
        return BranchOutput(
            unit_length(roi_head.classifier(box_features)),
            matched_values(ids, roi_matched),
            losses,
            sum(int((m >= 0).sum()) for m in matched),
        )


ADAPTERS = {"fcos": FCOSAdapter, "retinanet": RetinaNetAdapter, "faster_rcnn": FasterRCNNAdapter}


def adapter_class(detector: str) -> type[Adapter]:
    """The adapter of a detector.

    Raises:
        ValueError: the detector cannot be pre-trained.
    """
    require_choice("model.detector for pre-training", detector, ADAPTERS)
    return ADAPTERS[detector]


def ids_of_matched(matched: Tensor, ids: Sequence[Tensor]) -> Tensor:
    """Look instance ids up where fine-tuning looks class labels up. Unlike ``matched_values``,
    which lists the positives, it keeps the place of background and ignored predictions.

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


def unit_length(embeddings: Tensor) -> Tensor:
    """(S, D) embeddings, L2-normalised, float32."""
    return F.normalize(embeddings.float(), dim=1)
