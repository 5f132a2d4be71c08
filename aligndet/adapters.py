"""How AlignDet pre-trains each detector: one adapter per detector (AlignDet, section 3.3).

A detector in `models/` knows nothing of AlignDet. Its adapter adds a projector beside the
classification layer, and says which predictions are embedded, how they get instance ids, and which
box losses apply. If boxes have pseudo-classes, the classification layer learns them. It works on
the features of the backbone, which is frozen and shared by the online and the target branch.

Legend: N images, A points or anchors, R RoIs, P positive RoIs, M boxes, S samples, D embedding
width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aligndet.feature_scale import FeatureScale, unnormalised_layer
from aligndet.projectors import AnchorProjector, conv_projector, fc_projector
from models.anchors import flatten_predictions
from models.assign import look_up
from models.checks import require_choice
from models.detr import DETR, sides_of
from models.faster_rcnn import FasterRCNN, add_boxes
from models.fcos import FCOS
from models.indices import true_indices
from models.mask_rcnn import MaskRCNN
from models.matcher import pad_targets
from models.retinanet import RetinaNet
from models.sampling import over_batch, random_part, sample_balanced

PROJECTOR = "projector."  # prefix of its weights in a weights.pt; fine-tuning drops them


class BranchOutput(NamedTuple):
    """The output of one branch for one view."""

    embeddings: Tensor  # (S, D) L2-normalised, float32
    ids: Tensor  # (S,) instance id >= 0, or -1 for background
    losses: dict[str, Tensor]  # the detector's own box losses; empty for the target branch
    matched: Sequence[Tensor]  # per image (A,) box of each prediction, sampled or not, or negative
    queries: Tensor | None = None  # (Q, D) learned object queries, of a detector that has them


class Adapter(nn.Module):
    """Base of the adapters.

    Args:
        detector: built by `models.build_detector`. Its `backbone` is not used; its classifier stays
            in its place, untrained unless it learns pseudo-classes.
        width: D.
        samples: how many predictions to contrast; None for the paper's number, `samples`.
        learns_classes: whether boxes have pseudo-classes, for which the detector is built.
    """

    samples: int  # the paper's number
    classifier: tuple[str, ...]  # prefixes of the weights that the projector replaces
    box_outputs: tuple[str, ...]  # prefixes of the weights of the last layers of the box branch
    detector: nn.Module

    def __init__(
        self,
        detector: nn.Module,
        width: int,
        samples: int | None = None,
        learns_classes: bool = False,
    ) -> None:
        super().__init__()
        self.detector = detector
        self.learns_classes = learns_classes
        self.samples = samples or self.samples
        self.projector = self.build_projector(width)
        self.scale = self.build_scale()
        for name, parameter in detector.named_parameters():
            if name.startswith(self.classifier) and not learns_classes:
                parameter.requires_grad_(False)

    def build_projector(self, width: int) -> nn.Module:
        """The layers that embed a prediction, from what the classification layer reads."""
        raise NotImplementedError

    def build_scale(self) -> FeatureScale | None:
        """Tracks the size of the features that the projector reads; None if it cannot drift."""
        return None

    @classmethod
    def class_layers(cls, detector: nn.Module) -> tuple[str, ...]:
        """Prefixes of the weights of `detector` that only make sense for its own classes."""
        return cls.classifier

    def leave_masks_out(self) -> None:
        """Do not train a mask head, if there is one."""

    def weights(self) -> dict[str, Tensor]:
        """What fine-tuning starts from: the detector without its classifier, and the projector."""
        state = {
            name: value
            for name, value in self.detector.state_dict().items()
            if not name.startswith(self.classifier)
        }
        if self.scale is not None:
            state = self.scale.scaled_back(state)
        projector = self.projector.state_dict()
        return state | {PROJECTOR + name: value for name, value in projector.items()}

    def predictions(self, features: Sequence[Tensor], *args: Any) -> Any:
        """What neck, head and projector make of [C2, C3, C4, C5]: all layers whose input does not
        depend on the boxes."""
        raise NotImplementedError

    def forward(
        self,
        features: Sequence[Tensor],
        view: Mapping[str, Any],
        ids: Sequence[Tensor],
        with_losses: bool,
        online: BranchOutput | None = None,
    ) -> BranchOutput:
        """Run one view through neck, head and projector.

        Args:
            features: [C2, C3, C4, C5] of the backbone.
            view: `image_sizes` (N, 2), true (height, width) before padding, `boxes`, for each
                image (M, 4) xyxy proposals, both in pixels of this view; also, for each image,
                `masks` (M, H, W) uint8 and `labels` (M,) pseudo-classes, where they are learned.
            ids: for each image, (M,) instance ids of its boxes, unique in the batch.
            with_losses: whether the box losses are wanted (online branch) or not (target).
            online: for the target branch, what the online branch made of the other view.
        """
        raise NotImplementedError

    def statistics(self, matched: Sequence[Tensor]) -> dict[str, Tensor]:
        """What to log for a view, from the box of each of its predictions, (A,) per image.

        `positives` is the number of predictions assigned to a box, `feature_growth` there where
        features can drift; scalars.
        """
        positives = torch.stack([(m >= 0).sum() for m in matched]).sum().float()
        growth = {} if self.scale is None else {"feature_growth": self.scale.growth()}
        return {"positives": positives, **growth}


class FCOSAdapter(Adapter):
    """FCOS: every point of the pyramid is embedded, and belongs to the box it is assigned to."""

    samples = 2048  # points per batch, positives first
    classifier = ("head.cls_logits.",)
    box_outputs = ("head.box_regression.", "head.centerness.")
    detector: FCOS  # its towers are normalised: no feature scale

    def build_projector(self, width: int) -> nn.Module:
        """One embedding per point."""
        return conv_projector(self.detector.config.channels, width)

    def predictions(self, features, with_boxes):
        """Pyramid and embeddings (N, A, D); distances (N, A, 4), centerness (N, A) and class logits
        (N, A, K), or None."""
        head = self.detector.head
        pyramid = self.detector.neck(features[1:])
        cls_features = [head.cls_tower(x) for x in pyramid]
        embedded = [self.projector(x) for x in cls_features]
        boxes, logits = (None, None), None
        if with_boxes:
            boxes = head.boxes_from([head.box_tower(x) for x in pyramid])
        if with_boxes and self.learns_classes:
            logits = head.logits_from(cls_features)
        return pyramid, flatten_predictions(embedded, per_cell=1), *boxes, logits

    def forward(self, features, view, ids, with_losses, online=None) -> BranchOutput:
        """See `Adapter.forward`."""
        detector, boxes = self.detector, view["boxes"]
        pyramid, embeddings, *boxes_and_classes = self.predictions(features, with_losses)
        points, strides = detector.points_for(pyramid)
        matched = detector.assign(points, strides, boxes)  # (N, A) box index or BACKGROUND
        point_ids = torch.cat(look_up(ids, matched))  # (N * A,) image-major, like embeddings
        (chosen,) = sample_balanced([point_ids], self.samples, positive_fraction=1.0)
        losses = {}
        if with_losses:
            distances, centerness, logits = boxes_and_classes
            losses = detector.box_losses(distances, centerness, points, matched, boxes)
            if self.learns_classes:
                losses["loss_class"] = detector.class_loss(logits, matched, view["labels"])
        return BranchOutput(
            unit_length(embeddings.flatten(0, 1)[chosen]),  # of (N, A, D)
            point_ids[chosen],
            losses,
            matched,
        )


class RetinaNetAdapter(Adapter):
    """RetinaNet: every anchor has an embedding, and belongs to the box it overlaps most."""

    samples = 2048  # anchors per image, positives first
    classifier = ("head.cls_logits.",)
    box_outputs = ("head.box_regression.",)
    detector: RetinaNet

    def build_projector(self, width: int) -> nn.Module:
        """One embedding per anchor."""
        channels, anchors = self.detector.config.channels, self.detector.head.num_anchors
        return AnchorProjector(channels, anchors, width)

    def predictions(self, features, with_boxes):
        """Pyramid and class features of each level; deltas (N, A, 4) and class logits (N, A, K), or
        None."""
        head = self.detector.head
        pyramid = self.detector.neck(features[1:])
        cls_features, deltas, logits = [head.cls_tower(x) for x in pyramid], None, None
        if with_boxes:
            deltas = head.deltas_from([head.box_tower(x) for x in pyramid])
        if with_boxes and self.learns_classes:
            logits = head.logits_from(cls_features)
        return pyramid, cls_features, deltas, logits

    def build_scale(self) -> FeatureScale | None:
        """The class tower can drift unless it is normalised."""
        layer = unnormalised_layer(self.detector, "head.cls_tower")
        return None if layer is None else FeatureScale(layer)

    def forward(self, features, view, ids, with_losses, online=None) -> BranchOutput:
        """See `Adapter.forward`."""
        detector, boxes = self.detector, view["boxes"]
        pyramid, cls_features, deltas, logits = self.predictions(features, with_losses)
        anchors = detector.anchors_for(pyramid)  # (A, 4)
        matched = detector.assign(anchors, boxes)  # (N, A) box index, BACKGROUND or IGNORE
        anchor_ids = look_up(ids, matched)  # per image (A,)
        of_image = sample_balanced(anchor_ids, self.samples, positive_fraction=1.0)
        chosen = over_batch(of_image, len(anchors))  # (S,) into the anchors of all images
        losses = {}
        if with_losses:
            if self.scale is not None:
                self.scale.observe(cls_features)
            losses = detector.box_losses(deltas, anchors, matched, boxes)
            if self.learns_classes:
                losses["loss_class"] = detector.class_loss(logits, matched, view["labels"])
        return BranchOutput(
            unit_length(self.projector(cls_features, chosen)),
            torch.cat(anchor_ids)[chosen],
            losses,
            matched,
        )


class FasterRCNNAdapter(Adapter):
    """Faster R-CNN: the RPN learns to find the boxes, and every RoI that overlaps a box enough is
    embedded. RoIs are the RPN's own proposals and the boxes themselves; background is left out."""

    samples = 4096  # RoIs per image; `model.options.rpn_samples` is for the RPN's own losses
    classifier = ("roi_head.classifier.",)
    box_outputs = ("roi_head.box_regression.",)
    detector: FasterRCNN

    @classmethod
    def class_layers(cls, detector: FasterRCNN) -> tuple[str, ...]:
        """The classifier, and the box output if it predicts one box per class."""
        return cls.classifier + (() if detector.config.class_agnostic else cls.box_outputs)

    def build_projector(self, width: int) -> nn.Module:
        """One embedding per RoI."""
        return fc_projector(self.detector.config.box_features, width)

    def predictions(self, features, with_boxes):
        """Pyramid and output of the RPN, which proposes RoIs in both branches."""
        pyramid = self.detector.neck(features)
        return pyramid, self.detector.rpn(pyramid)

    def build_scale(self) -> FeatureScale:
        """The fully connected layers can drift; the box output reads them too."""
        layer = unnormalised_layer(self.detector, "roi_head.fcs")
        return FeatureScale(layer, other_readers=("roi_head.box_regression.weight",))

    def forward(self, features, view, ids, with_losses, online=None) -> BranchOutput:
        """See `Adapter.forward`."""
        rpn, roi_head, config = self.detector.rpn, self.detector.roi_head, self.detector.config
        boxes, sizes = view["boxes"], view["image_sizes"]
        pyramid, proposed = self.predictions(features, with_losses)
        found = rpn.propose(proposed, sizes, config.topk_train, config.proposals_train)
        rois = add_boxes(found, boxes)
        matched = roi_head.assign(rois, boxes)  # per image (R,) box index or BACKGROUND
        chosen = [random_part(p, self.samples) for p in true_indices([m >= 0 for m in matched])]
        rois = [r[index] for r, index in zip(rois, chosen, strict=True)]
        roi_matched = [m[index] for m, index in zip(matched, chosen, strict=True)]
        box_features = roi_head.box_features(pyramid[:-1], rois)  # (P, F)
        losses = {}
        if with_losses:
            self.scale.observe([box_features])
            deltas = roi_head.deltas_from(box_features)
            losses = rpn.losses(proposed, boxes)
            # Divided by the number of positives here, since no other RoIs are sampled.
            losses |= roi_head.box_losses(deltas, rois, roi_matched, boxes, view.get("labels"))
            losses |= self.mask_losses(pyramid, rois, roi_matched, view)
            if self.learns_classes:  # of positive RoIs: it does not learn what background is
                logits = roi_head.classifier(box_features)
                losses["loss_class"] = roi_head.class_loss(logits, roi_matched, view["labels"])
        return BranchOutput(
            unit_length(self.projector(box_features)),
            torch.cat(look_up(ids, roi_matched)),  # all are positives
            losses,
            matched,
        )

    def mask_losses(self, pyramid, rois, matched, view) -> dict[str, Tensor]:
        """Of a detector that has masks, see `MaskRCNNAdapter`."""
        return {}


class MaskRCNNAdapter(FasterRCNNAdapter):
    """Mask R-CNN: Faster R-CNN whose mask head learns the pixels of the proposals, where the search
    says which they are. The authors leave it random."""

    detector: MaskRCNN
    learns_masks = True

    def leave_masks_out(self) -> None:
        """See `Adapter.leave_masks_out`."""
        self.learns_masks = False
        self.detector.mask_head.requires_grad_(False)

    @classmethod
    def class_layers(cls, detector: MaskRCNN) -> tuple[str, ...]:
        """Those of Faster R-CNN, and the mask output if it predicts one mask per class."""
        agnostic = detector.config.mask_class_agnostic
        return super().class_layers(detector) + (() if agnostic else ("mask_head.predictor.",))

    def mask_losses(self, pyramid, rois, matched, view) -> dict[str, Tensor]:
        """On as many RoIs of an image as fine-tuning has: the mask head sees four times as many
        cells of each as the box head.

        Args:
            pyramid: P2 to P6.
            rois, matched: for each image, RoIs (P, 4) and the boxes (P,) they belong to.
            view: see `Adapter.forward`.
        """
        if not self.learns_masks:
            return {}
        config, head = self.detector.config, self.detector.mask_head
        most = int(config.roi_samples * config.roi_positive_fraction)
        rois, matched = head.positives(rois, matched, view["masks"], most)
        logits = head(pyramid[:-1], rois)
        return head.losses(logits, rois, matched, view["masks"], view.get("labels"))


class DETRAdapter(Adapter):
    """DETR: every query that answers for a box is embedded, after each decoder layer. The target
    decodes the online branch's queries. Which one answers is decided in each view by itself: a
    query stands for a place, and in a view that is mirrored an instance is in another place."""

    samples = 600  # queries of all layers, in each image: all there are by default
    classifier = ("classifier.",)
    box_outputs = ("box_regression.",)
    detector: DETR  # its decoder's output is normalised: no feature scale

    def build_projector(self, width: int) -> nn.Module:
        """One embedding per query."""
        return fc_projector(self.detector.config.width, width)

    def predictions(self, features, heights, widths, queries):
        """What each decoder layer makes of the queries, and embeddings (L, N, Q, D); see
        `DETR.decode`."""
        output = self.detector.decode(features, heights, widths, queries)
        output = output if self.detector.config.aux_losses else output.last()
        return output, self.projector(output.decoded)

    def forward(self, features, view, ids, with_losses, online=None) -> BranchOutput:
        """See `Adapter.forward`."""
        sizes = view["image_sizes"].to(features[-1].device, non_blocking=True)
        queries = self.detector.query_embedding.weight if online is None else online.queries
        heights, widths = sizes[:, 0].clone(), sizes[:, 1].clone()  # see `DETR.predictions`
        output, embeddings = self.predictions(features, heights, widths, queries)
        matched, losses = self.match(output, view, sides_of(sizes), with_losses)
        of_image = embeddings.transpose(0, 1).flatten(1, 2)  # (N, L * Q, D)
        chosen = [random_part(p, self.samples) for p in true_indices([m >= 0 for m in matched])]
        of_chosen = [m[index] for m, index in zip(matched, chosen, strict=True)]
        return BranchOutput(
            unit_length(torch.cat([e[index] for e, index in zip(of_image, chosen, strict=True)])),
            torch.cat(look_up(ids, of_chosen)),  # all are positives
            losses,
            matched,
            queries,
        )

    def match(self, output, view, sides, with_losses) -> tuple[list[Tensor], dict[str, Tensor]]:
        """The box of each query of each layer, (L * Q,) per image, and the losses; the classes have
        a say where they are learned."""
        detector, boxes = self.detector, view["boxes"]
        labels = view["labels"] if self.learns_classes else [b.new_zeros(len(b)) for b in boxes]
        targets = [{"boxes": b, "labels": y.long()} for b, y in zip(boxes, labels, strict=True)]
        padded = pad_targets(targets, sides)
        matched = detector.match(output, padded, with_class=self.learns_classes)  # (L, N, Q)
        losses = {}
        if with_losses:
            losses = detector.box_losses(output.boxes, matched, padded, sides)
            if self.learns_classes:
                losses["loss_class"] = detector.class_loss(output.logits, matched, padded.labels)
        return list(matched.transpose(0, 1).flatten(1)), losses


ADAPTERS = {
    "fcos": FCOSAdapter,
    "retinanet": RetinaNetAdapter,
    "faster_rcnn": FasterRCNNAdapter,
    "mask_rcnn": MaskRCNNAdapter,
    "detr": DETRAdapter,
}


def adapter_class(detector: str) -> type[Adapter]:
    """The adapter of a detector.

    Raises:
        ValueError: the detector cannot be pre-trained.
    """
    require_choice("model.detector for pre-training", detector, ADAPTERS)
    return ADAPTERS[detector]


def unit_length(embeddings: Tensor) -> Tensor:
    """(S, D) embeddings, L2-normalised, float32."""
    return F.normalize(embeddings.float(), dim=1)
