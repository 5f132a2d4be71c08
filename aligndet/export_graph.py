"""A detector as one graph from pixels to final boxes, for other programs to run.

It computes what the detector's own `forward` does, with the steps of `export_steps.py`;
`tests/test_export.py` compares the two.

Legend: N images, K foreground classes, T candidates, R RoIs of an image, P RoIs of the batch,
L levels, D detections of the batch, S side of a mask in cells.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aligndet.export_steps import (
    NOTHING,
    Found,
    Suppress,
    best,
    candidates,
    clipped,
    large,
    pool,
    taken,
    without_duplicates,
)
from data.normalise import MEAN, STD
from models.coders import deltas_to_boxes, distances_to_boxes
from models.detr import DETR, sides_of, to_pixels
from models.faster_rcnn import FasterRCNN
from models.fcos import FCOS
from models.mask_head import MaskHead, of_classes
from models.mask_rcnn import MaskRCNN
from models.retinanet import RetinaNet
from models.roi_head import DELTA_WEIGHTS
from models.rpn import RPN

DIVISOR = 32  # the sides of a batch become multiples of it, as in `data.views.pad_images`
OUTPUTS = ("boxes", "scores", "labels", "image_index", "masks")


class ExportedDetector(nn.Module):
    """Images to detections, with no shape or loop that depends on what is found.

    Args:
        detector: of one of the classes in `FINDERS`.
        keep: `export_steps.suppress`, or another way to compute the same.
    """

    def __init__(self, detector: nn.Module, keep: Suppress) -> None:
        super().__init__()
        self.detector = detector
        self.keep = keep
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(3, 1, 1), persistent=False)
        self.eval()  # all of it: an exporter brings the whole back into the mode of this module

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of what `forward` returns."""
        return OUTPUTS if isinstance(self.detector, MaskRCNN) else OUTPUTS[:-1]

    def forward(self, images: Tensor, image_sizes: Tensor) -> tuple[Tensor, ...]:
        """Detect the objects in a batch of images.

        Args:
            images: (N, 3, H, W) uint8, RGB, padded on the right and below to one size; what is in
                the padding does not matter.
            image_sizes: (N, 2) int64, true (height, width) before padding.

        Returns:
            boxes (D, 4) xyxy in pixels and scores (D,), float32; labels (D,) in 0..K-1 and the
            image (D,) in 0..N-1 that each belongs to, int64; image by image, best first. Of
            Mask R-CNN also masks (D, S, S), float32, probabilities inside the boxes.
        """
        x = self.network_input(images, image_sizes)
        found = FINDERS[type(self.detector)](self.detector, x, image_sizes, self.keep)
        image, place = (found.scores > NOTHING).nonzero().unbind(1)  # (D,)
        boxes, labels = found.boxes[image, place], found.labels[image, place]
        result = (boxes, found.scores[image, place], labels, image)
        if not isinstance(self.detector, MaskRCNN):
            return result
        return *result, masks_of(self.detector.mask_head, found.features, boxes, labels, image)

    def network_input(self, images: Tensor, image_sizes: Tensor) -> Tensor:
        """What `data.views.pad_images` and `data.normalise.normalise` make of images."""
        height, width = images.shape[2:]
        x = (images.float() / 255 - self.mean) / self.std
        rows = torch.arange(height, device=x.device) < image_sizes[:, :1]  # (N, H)
        columns = torch.arange(width, device=x.device) < image_sizes[:, 1:]  # (N, W)
        x = x.where(rows[:, None, :, None] & columns[:, None, None], 0.0)
        return F.pad(x, (0, to_multiple(width) - width, 0, to_multiple(height) - height))


def to_multiple(side: int) -> int:
    """A side rounded up to a multiple of DIVISOR."""
    return (side + DIVISOR - 1) // DIVISOR * DIVISOR


def find_by_points(model: FCOS, x: Tensor, image_sizes: Tensor, keep: Suppress) -> Found:
    """FCOS, see `FCOS.detections`."""
    c = model.config
    features, output = model.predictions(x)
    points, _ = model.points_for(features)
    level_sizes = [level.shape[2] * level.shape[3] for level in features]
    scores = (output.logits.sigmoid() * output.centerness.sigmoid()[..., None]).sqrt()
    scores, index, labels = candidates(scores, level_sizes, c.score_threshold, c.topk_candidates)
    boxes = distances_to_boxes(points[index], taken(output.distances, index))
    found = Found(boxes, scores, labels)
    return without_duplicates(found, image_sizes, model.num_classes, c, keep)


def find_by_anchors(model: RetinaNet, x: Tensor, image_sizes: Tensor, keep: Suppress) -> Found:
    """RetinaNet, see `RetinaNet.detections`."""
    c, per_cell = model.config, model.head.num_anchors
    features, output = model.predictions(x)
    anchors = model.anchors_for(features)
    level_sizes = [level.shape[2] * level.shape[3] * per_cell for level in features]
    scores = output.logits.sigmoid()
    scores, index, labels = candidates(scores, level_sizes, c.score_threshold, c.topk_candidates)
    boxes = deltas_to_boxes(anchors[index], taken(output.deltas, index))
    found = Found(boxes, scores, labels)
    return without_duplicates(found, image_sizes, model.num_classes, c, keep)


def find_by_queries(model: DETR, x: Tensor, image_sizes: Tensor, keep: Suppress) -> Found:
    """DETR, see `DETR.detections`; there is nothing to suppress."""
    c = model.config
    output = model.predictions(x, image_sizes[:, 0].clone(), image_sizes[:, 1].clone())
    scores, labels = output.logits[-1].softmax(dim=2)[..., :-1].max(dim=2)  # (N, Q)
    boxes = clipped(to_pixels(output.boxes[-1], sides_of(image_sizes)), image_sizes)
    scores = scores.where(large(boxes, c.min_size) & (scores > c.score_threshold), NOTHING)
    return best(Found(boxes, scores, labels), c.detections_per_image)


def find_by_rois(model: FasterRCNN, x: Tensor, image_sizes: Tensor, keep: Suppress) -> Found:
    """Faster R-CNN, see `FasterRCNN.detections` and `RoIHead.detections`."""
    c, head, num_classes = model.config, model.roi_head, model.num_classes
    features = model.pyramid(x)
    proposed = proposals(model.rpn, features, image_sizes, c.topk_test, c.proposals_test, keep)
    count, most = proposed.scores.shape  # N, R
    image, place = (proposed.scores > NOTHING).nonzero().unbind(1)  # (P,)
    rois = proposed.boxes[image, place]
    pooled = pool(features[:-1], rois, image, head.strides, c.roi_size, c)
    box_features = head.fcs(head.convs(pooled).flatten(1))  # (P + 1, F)
    probability = head.classifier(box_features)[:-1].softmax(dim=1)[:, :-1]  # (P, K)
    deltas = head.deltas_from(box_features)[:-1].expand(-1, num_classes, -1)  # (P, K, 4)
    # Back into rows of R per image; places without an RoI stay empty.
    scores = probability.new_full((count, most, num_classes), NOTHING)
    scores[image, place] = probability.where(probability > c.score_threshold, NOTHING)
    boxes = deltas.new_zeros(count, most, num_classes, 4)
    boxes[image, place] = deltas_to_boxes(rois[:, None], deltas, DELTA_WEIGHTS)
    boxes = clipped(boxes.transpose(1, 2).flatten(1, 2), image_sizes)  # (N, K * R, 4)
    scores = scores.transpose(1, 2).flatten(1).where(large(boxes, c.min_size), NOTHING)
    # A row for each class of each image, as it has boxes of its own.
    of_classes = boxes.reshape(-1, most, 4), scores.reshape(-1, 1, most)
    kept = keep(*of_classes, c.nms_iou).reshape(scores.shape)
    labels = torch.arange(num_classes, device=x.device).repeat_interleave(most)
    found = Found(boxes, scores.where(kept, NOTHING), labels.expand(count, -1))
    return best(found, c.detections_per_image)._replace(features=features[:-1])


def proposals(
    rpn: RPN,
    features: Sequence[Tensor],
    image_sizes: Tensor,
    topk: int,
    limit: int,
    keep: Suppress,
) -> Found:
    """See `RPN.propose`: T = R, scored by logits; labels mean nothing."""
    output = rpn(features)
    levels = len(output.level_sizes)
    logits, index, _ = candidates(output.objectness[..., None], output.level_sizes, NOTHING, topk)
    boxes = deltas_to_boxes(output.anchors[index], taken(output.deltas, index))  # (N, L * topk, 4)
    boxes = clipped(boxes, image_sizes)
    logits = logits.where(large(boxes, rpn.config.rpn_min_size), NOTHING)
    of_levels = boxes.unflatten(1, (levels, topk)).flatten(0, 1)  # (N * L, topk, 4)
    scores = logits.unflatten(1, (levels, topk)).flatten(0, 1)[:, None]
    kept = keep(of_levels, scores, rpn.config.rpn_nms_iou).reshape(logits.shape)
    return best(Found(boxes, logits.where(kept, NOTHING), index), limit)


def masks_of(
    head: MaskHead, features: Sequence[Tensor], boxes: Tensor, labels: Tensor, image: Tensor
) -> Tensor:
    """See `MaskHead.detections`: boxes (D, 4) of classes (D,) on images (D,) to (D, S, S)."""
    c = head.config
    pooled = pool(features, boxes, image, head.strides, c.mask_roi_size, c)
    logits = head.logits_from(head.convs(pooled))[:-1]
    if logits.shape[1] > 1:
        logits = of_classes(logits, labels)
    return logits.squeeze(1).sigmoid()


FINDERS = {
    FCOS: find_by_points,
    RetinaNet: find_by_anchors,
    FasterRCNN: find_by_rois,
    MaskRCNN: find_by_rois,
    DETR: find_by_queries,
}
