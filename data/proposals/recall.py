"""How well proposals cover the objects of labelled images.

Legend: P proposals, M ground-truth boxes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
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
