"""From dense predictions to detections, shared by the dense detectors.

`top_candidates` keeps the best predictions of an image, the detector decodes the boxes of these
few, `suppress_duplicates` turns them into detections.

Legend: A anchors or points, K foreground classes, T candidates, D detections.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import batched_nms, clip_boxes_to_image

from models.indices import true_indices


def top_candidates(
    scores: Tensor, level_sizes: Sequence[int], threshold: float, limit: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The best (point, class) pairs of each level; on a GPU this waits once.

    Args:
        scores: (A, K) of one image, in 0..1.
        level_sizes: the number of points of each level, in the order of A.
        threshold: pairs must score more than this.
        limit: how many pairs a level may keep.

    Returns:
        scores (T,), point indices (T,) into A, and classes (T,) in 0..K-1.
    """
    num_classes = scores.shape[1]
    levels = [level.flatten() for level in scores.split(list(level_sizes))]
    above = true_indices([level > threshold for level in levels])
    kept_scores, kept_pairs, first = [], [], 0
    for level, pairs in zip(levels, above, strict=True):
        best, order = level[pairs].topk(min(limit, len(pairs)))
        kept_scores.append(best)
        kept_pairs.append(pairs[order] + first)
        first += len(level)
    pairs = torch.cat(kept_pairs)
    return torch.cat(kept_scores), pairs // num_classes, pairs % num_classes


def best_of_levels(scores: Tensor, level_sizes: Sequence[int], limit: int) -> Tensor:
    """The best points of each level, whatever they score.

    Args:
        scores: (A,) of one image.
        level_sizes: the number of points of each level, in the order of A.
        limit: how many points a level may keep.

    Returns:
        (T,) indices into A, level by level, best first.
    """
    kept, first = [], 0
    for level in scores.split(list(level_sizes)):
        kept.append(level.topk(min(limit, len(level))).indices + first)
        first += len(level)
    return torch.cat(kept)


def suppress_duplicates(
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor,
    image_size: tuple[int, int],
    nms_iou: float,
    limit: int,
    min_size: float = 0.0,
) -> dict[str, Tensor]:
    """Clip candidates to the image, apply class-wise non-maximum suppression, keep the best.

    Args:
        boxes: (T, 4) xyxy, in pixels.
        scores: (T,).
        labels: (T,) int64.
        image_size: true (height, width) of the image, in pixels, as numbers of the host.
        nms_iou: if two boxes of a class overlap more than this, only the better one is kept.
        limit: how many detections an image may have.
        min_size: clipped boxes with a shorter side, in pixels, are dropped.

    Returns:
        boxes (D, 4) xyxy, scores (D,) descending, labels (D,).
    """
    boxes, scores = clip_boxes_to_image(boxes.float(), image_size), scores.float()
    (large,) = true_indices([((boxes[:, 2:] - boxes[:, :2]) >= min_size).all(dim=1)])
    boxes, scores, labels = boxes[large], scores[large], labels[large]
    keep = batched_nms(boxes, scores, labels, nms_iou)[:limit]
    return {"boxes": boxes[keep], "scores": scores[keep], "labels": labels[keep]}
