"""The steps from predictions to detections for all images of a batch at once.

`models/` looks at each image by itself and at as many candidates as it has. A graph that is written
once cannot: here every image has a fixed number of candidates, of which those that do not count
score NOTHING.

Legend: N images, A anchors or points, K foreground classes, T candidates, P RoIs of the batch,
C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import nms, roi_align

from models.detr import sides_of
from models.roi_head import levels_of

NOTHING = float("-inf")

# Takes boxes (B, T, 4), scores (B, G, T) of G groups, and an IoU. Returns which (B, G, T) are kept
# by non-maximum suppression in each group of each row by itself; what scores NOTHING is not.
Suppress = Callable[[Tensor, Tensor, float], Tensor]


class Found(NamedTuple):
    """Boxes of each image, best first; those that score NOTHING fill up the rows."""

    boxes: Tensor  # (N, T, 4) xyxy in pixels
    scores: Tensor  # (N, T)
    labels: Tensor  # (N, T) int64
    features: Sequence[Tensor] = ()  # the maps that RoIs were pooled from, if any were


class DetectionOptions(Protocol):
    """What `without_duplicates` needs of a detector's config."""

    nms_iou: float
    detections_per_image: int
    min_size: float


class PoolingOptions(Protocol):
    """What `pool` needs of a head's config."""

    roi_sampling: int
    roi_aligned: bool


def suppress(boxes: Tensor, scores: Tensor, iou: float) -> Tensor:
    """`Suppress` by torchvision's operation, which knows neither rows nor groups: each of them is
    moved to a place of its own, in double precision, where that changes no overlap."""
    row, group, place = (scores > NOTHING).nonzero().unbind(1)
    moved = (row * scores.shape[1] + group) * (boxes.double().amax() + 1)
    apart = boxes[row, place].double() + moved[:, None]
    keep = nms(apart, scores[row, group, place].double(), iou)
    result = torch.zeros_like(scores, dtype=torch.bool)
    result[row[keep], group[keep], place[keep]] = True
    return result


def candidates(
    scores: Tensor, level_sizes: Sequence[int], threshold: float, limit: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The best `limit` (point, class) pairs of each level, see `models.postprocess.top_candidates`.

    Args:
        scores: (N, A, K).
        level_sizes: points of each level.
        threshold: pairs that do not score more than this are no candidates.
        limit: of each level.

    Returns:
        scores (N, T), point indices (N, T) into A, and classes (N, T), level by level.
    """
    values, indices, first, num_classes = [], [], 0, scores.shape[2]
    for size in level_sizes:
        level = scores[:, first : first + size].flatten(1)
        # Filled up, as a level may have fewer pairs than the limit.
        value, index = F.pad(level, (0, limit), value=NOTHING).topk(limit)
        values.append(value)
        indices.append(index.clamp(max=size * num_classes - 1) + first * num_classes)
        first = first + size
    of_pairs, pairs = torch.cat(values, dim=1), torch.cat(indices, dim=1)
    of_pairs = of_pairs.where(of_pairs > threshold, NOTHING)
    return of_pairs, pairs // num_classes, pairs % num_classes


def without_duplicates(
    found: Found, image_sizes: Tensor, num_classes: int, options: DetectionOptions, keep: Suppress
) -> Found:
    """Detections of candidates, see `models.postprocess.suppress_duplicates`."""
    boxes = clipped(found.boxes, image_sizes)
    scores = found.scores.where(large(boxes, options.min_size), NOTHING)
    classes = torch.arange(num_classes, device=boxes.device)[:, None]
    by_class = scores[:, None].where(found.labels[:, None] == classes, NOTHING)  # (N, K, T)
    kept = keep(boxes, by_class, options.nms_iou).any(dim=1)
    scores = scores.where(kept, NOTHING)
    return best(Found(boxes, scores, found.labels), options.detections_per_image)


def best(found: Found, limit: int) -> Found:
    """The best `limit` of each image, best first."""
    scores, order = found.scores.topk(min(limit, found.scores.shape[1]))
    return Found(taken(found.boxes, order), scores, found.labels.gather(1, order))


def taken(values: Tensor, index: Tensor) -> Tensor:
    """Of each image the rows `index` (N, T) of (N, A, 4): (N, T, 4)."""
    return values.gather(1, index[..., None].expand(-1, -1, values.shape[2]))


def clipped(boxes: Tensor, image_sizes: Tensor) -> Tensor:
    """The parts of boxes (N, T, 4) inside their images, whose (height, width) are (N, 2)."""
    return torch.minimum(boxes.clamp(min=0), sides_of(image_sizes)[:, None])


def large(boxes: Tensor, min_size: float) -> Tensor:
    """Whether both sides of boxes (..., 4) are at least `min_size` px: (...) bool."""
    return ((boxes[..., 2:] - boxes[..., :2]) >= min_size).all(dim=-1)


def pool(
    features: Sequence[Tensor],
    rois: Tensor,
    image: Tensor,
    strides: Sequence[int],
    size: int,
    options: PoolingOptions,
) -> Tensor:
    """Like `models.roi_head.pool_rois`: RoIs (P, 4) on images (P,) to (P + 1, C, size, size), with
    a last row of zeros, to be dropped in the end: onnxruntime's layers stop at no rows at all."""
    indexed = torch.cat((image[:, None].to(rois.dtype), rois), dim=1)  # (P, 5)
    levels = levels_of(rois, strides)
    result = rois.new_zeros(rois.shape[0] + 1, features[0].shape[1], size, size)
    for level, (x, stride) in enumerate(zip(features, strides, strict=True)):
        here = (levels == level).nonzero().squeeze(1)
        how = (size, 1 / stride, options.roi_sampling, options.roi_aligned)
        result[here] = roi_align(x, indexed[here], *how)
    return result
