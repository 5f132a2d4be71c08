"""How well proposals cover the objects of labelled images.

Legend: P proposals, M ground-truth boxes or masks.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pycocotools import mask as coco_mask
from torch import Tensor
from torchvision.ops import box_iou

LARGE_AREA = 32**2  # objects above this area in pixels are also counted apart


def measure_recall(proposals: Sequence[Tensor], objects: Sequence[Tensor]) -> dict[str, float]:
    """How well proposals cover the objects, image by image.

    Args:
        proposals: per image (P, 4) xyxy.
        objects: per image (M, 4) xyxy.

    Returns:
        `objects` (their number), `recall` (share with a proposal of IoU >= 0.5) and
        `mean_best_iou`; the same three with `large_` before them for objects of more than
        32 x 32 pixels; `boxes_per_image`. Shares lie in 0..1 and are NaN without objects.
    """
    best, area = [torch.zeros(0)], [torch.zeros(0)]
    for boxes, truth in zip(proposals, objects, strict=True):
        padded = torch.cat([boxes, boxes.new_zeros(1, 4)])  # an empty box, in case P is 0
        best.append(box_iou(truth, padded).amax(dim=1))
        area.append((truth[:, 2:] - truth[:, :2]).prod(dim=1))
    best_iou, large = torch.cat(best), torch.cat(area) > LARGE_AREA
    report = {"boxes_per_image": sum(map(len, proposals)) / max(len(proposals), 1)}
    for name, iou in (("", best_iou), ("large_", best_iou[large])):
        report[f"{name}objects"] = len(iou)
        report[f"{name}recall"] = (iou >= 0.5).float().mean().item()
        report[f"{name}mean_best_iou"] = iou.mean().item()
    return report


def best_mask_iou(
    proposals: Sequence[bytes], objects: Sequence[bytes], size: tuple[int, int]
) -> Tensor:
    """How well the masks of proposals cover those of an image's objects.

    Args:
        proposals: P masks as in `data.masks`.
        objects: M masks; those without one are left out.
        size: (height, width) of the image.

    Returns:
        (at most M,) float32, of each object the highest IoU of its mask with a proposal's, in 0..1.
    """
    given, truth = (
        [{"size": list(size), "counts": mask} for mask in masks if mask]
        for masks in (proposals, objects)
    )
    if not (given and truth):
        return torch.zeros(len(truth))
    iou = coco_mask.iou(given, truth, [0] * len(truth))  # (P, M)
    return torch.from_numpy(iou).amax(dim=0).float()
