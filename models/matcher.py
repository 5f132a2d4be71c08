"""Which query answers for which box: the matching of DETR (Carion et al., ECCV 2020, section 3.1).

Legend: L decoder layers, N images, Q queries, M boxes of the image that has most, K foreground
classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torchvision.ops import box_convert

from models.assign import BACKGROUND
from models.linear_assignment import linear_assignment

# Of a prediction that is infinite or not a number, so that it is matched last. Its loss is neither,
# which ends the run with a report. Other costs are far below.
WORST_COST = 1e5


class PaddedTargets(NamedTuple):
    """The boxes of a batch in tensors of one size; what is beyond an image's own means nothing."""

    boxes: Tensor  # (N, M, 4) cx, cy, w, h in fractions of the true image's width and height
    labels: Tensor  # (N, M)
    counts: list[int]  # of each image's boxes


def pad_targets(targets: Sequence[Mapping[str, Tensor]], sides: Tensor) -> PaddedTargets:
    """Stack the boxes and labels of a batch; M is at least 1.

    Args:
        targets: boxes (M_n, 4) xyxy in pixels and labels (M_n,) of each image.
        sides: (N, 4) width, height, width, height of the true images, in pixels.
    """
    counts = [len(target["labels"]) for target in targets]
    boxes = pad_sequence([t["boxes"].float() for t in targets], batch_first=True)
    labels = pad_sequence([t["labels"] for t in targets], batch_first=True)
    if not max(counts):
        boxes, labels = F.pad(boxes, (0, 0, 0, 1)), F.pad(labels, (0, 1))
    boxes = box_convert(boxes / sides[:, None], "xyxy", "cxcywh")
    return PaddedTargets(boxes, labels, counts)


@torch.no_grad()
def match_queries(
    logits: Tensor,
    boxes: Tensor,
    targets: PaddedTargets,
    class_weight: float,
    box_weight: float,
    giou_weight: float,
) -> Tensor:
    """Match queries with boxes one to one, at the least sum of costs (equation 1).

    The assignments of all layers and images are found at once on the host: on a GPU this waits
    once.

    Args:
        logits: (L, N, Q, K + 1).
        boxes: (L, N, Q, 4) as those of the targets.
        targets: of the N images.
        class_weight, box_weight, giou_weight: of the three costs, see `matching_costs`. Without
            the first, boxes alone decide, and logits may mean anything.

    Returns:
        (L, N, Q) int64: the index of the box in its image, or BACKGROUND. If an image has more
        boxes than there are queries, some of them have no query.
    """
    if not any(targets.counts):
        return torch.full(boxes.shape[:3], BACKGROUND, device=boxes.device)
    costs = matching_costs(logits, boxes, targets, class_weight, box_weight, giou_weight)
    costs = costs.nan_to_num(WORST_COST, WORST_COST, WORST_COST)
    rows = costs.transpose(2, 3).flatten(0, 1).cpu().numpy()  # (L * N, M, Q)
    row_of = linear_assignment(rows, targets.counts * len(boxes))
    # Few bytes: a copy that the host need not wait for. UNASSIGNED is BACKGROUND.
    matched = torch.from_numpy(row_of).int().view(boxes.shape[:3])
    return matched.to(boxes.device, non_blocking=True).long()


def matching_costs(
    logits: Tensor,
    boxes: Tensor,
    targets: PaddedTargets,
    class_weight: float,
    box_weight: float,
    giou_weight: float,
) -> Tensor:
    """What it costs that a query answers for a box: (L, N, Q, M) float32.

    Weighted sum of the probability of the box's class, negative (section 3.1, and not its
    logarithm, so that it is comparable with the others), the L1 distance of the boxes, and their
    GIoU, negative (supplement A.2). Arguments as in `match_queries`.
    """
    boxes = boxes.float()
    costs = box_weight * torch.cdist(boxes, targets.boxes[None].expand(len(boxes), -1, -1, -1), 1)
    corners = box_convert(boxes, "cxcywh", "xyxy")
    costs -= giou_weight * pairwise_giou(corners, box_convert(targets.boxes, "cxcywh", "xyxy"))
    if class_weight:
        wanted = targets.labels[None, :, None].expand_as(costs)
        costs -= class_weight * logits.float().softmax(dim=3).gather(3, wanted)
    return costs


def pairwise_giou(boxes: Tensor, others: Tensor) -> Tensor:
    """GIoU (Rezatofighi et al., CVPR 2019) of boxes (..., Q, 4) with others (..., M, 4), xyxy:
    (..., Q, M) in -1..1; not a number for two boxes without area at the same place."""
    a, b = boxes[..., :, None, :], others[..., None, :, :]
    overlap = area(torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:]))
    hull = area(torch.minimum(a[..., :2], b[..., :2]), torch.maximum(a[..., 2:], b[..., 2:]))
    union = area(a[..., :2], a[..., 2:]) + area(b[..., :2], b[..., 2:]) - overlap
    return overlap / union - (hull - union) / hull


def area(top_left: Tensor, bottom_right: Tensor) -> Tensor:
    """Of boxes (...) given by corners (..., 2); 0 if the corners are the wrong way round."""
    return (bottom_right - top_left).clamp(min=0).prod(dim=-1)
