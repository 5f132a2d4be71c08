"""Region proposal network: finds objects of any class (Ren et al., "Faster R-CNN",
NIPS 2015, section 3.1; on a pyramid: Lin et al., FPN, CVPR 2017, section 4.1).

Legend: N images, A anchors of all levels, M ground-truth boxes, R proposals of an image,
B anchors per cell, T candidates, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from losses.normalizer import mean_over_ranks
from models.anchors import ANCHOR_RATIOS, cell_anchors, flatten_predictions, grid_anchors
from models.assign import assign_by_iou, find_positives, require_thresholds
from models.box_loss import BOX_LOSSES, box_loss
from models.checks import require_choice
from models.coders import deltas_to_boxes
from models.postprocess import best_of_levels, suppress_duplicates
from models.sampling import over_batch, sample_balanced
from models.tower import conv_tower


@dataclass(frozen=True)
class RPNConfig:
    """Settings of the head, its losses and its proposals."""

    channels: int = 256  # of the pyramid and of the head
    rpn_convs: int = 1  # 3x3 convolutions before the outputs
    rpn_anchor_size: float = 8.0  # square root of the area, in strides: 32 px at stride 4
    rpn_anchor_offset: float = 0.0  # position in the cell, in strides: 0.5 is its centre
    rpn_anchor_whole_pixels: bool = False  # round anchors as torchvision does
    rpn_foreground_iou: float = 0.7  # an anchor with at least this IoU is positive
    rpn_background_iou: float = 0.3  # below this, it is negative; between the two it is ignored
    rpn_samples: int = 256  # anchors per image in the losses
    rpn_positive_fraction: float = 0.5  # of the samples, at most
    rpn_box_loss: str = "l1"  # or "smooth_l1", "giou", "iou"
    rpn_smooth_l1_beta: float = 1 / 9  # deltas below it cost quadratically
    rpn_nms_iou: float = 0.7  # overlap at which the weaker of two proposals of a level is dropped
    rpn_min_size: float = 1e-3  # px; smaller proposals are dropped

    # Which weights there are and what their outputs mean; the others may change between trainings.
    NETWORK: ClassVar[tuple[str, ...]] = (
        *("channels", "rpn_convs", "rpn_anchor_size", "rpn_anchor_offset"),
        *("rpn_anchor_whole_pixels",),
    )

    def __post_init__(self) -> None:
        require_choice("model.options.rpn_box_loss", self.rpn_box_loss, BOX_LOSSES)
        require_thresholds("model.options.rpn_", self.rpn_foreground_iou, self.rpn_background_iou)


class RPNOutput(NamedTuple):
    """Raw predictions and what they refer to; A runs as in `grid_anchors`."""

    objectness: Tensor  # (N, A) logits
    deltas: Tensor  # (N, A, 4) from anchor to box, see `boxes_to_deltas`, float32
    anchors: Tensor  # (A, 4) xyxy in pixels, the same for all images
    level_sizes: list[int]  # number of anchors of each level


class RPN(nn.Module):
    """A small head shared by all levels, its losses, and the proposals it makes.

    It knows no classes, so it treats labelled and unlabelled boxes alike.
    """

    def __init__(self, config: RPNConfig, strides: Sequence[int]) -> None:
        super().__init__()
        self.config = config
        self.strides = tuple(strides)
        self.cells = self.cells_of_levels()
        channels = config.channels
        self.tower = conv_tower(channels, config.rpn_convs)
        self.objectness = nn.Conv2d(channels, len(ANCHOR_RATIOS), 1)
        self.box_regression = nn.Conv2d(channels, len(ANCHOR_RATIOS) * 4, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias)

    def forward(self, features: Sequence[Tensor]) -> RPNOutput:
        """Pyramid maps, a list of (N, C, H_i, W_i), to predictions."""
        hidden = [self.tower(x) for x in features]
        per_cell = len(ANCHOR_RATIOS)
        objectness = flatten_predictions([self.objectness(x) for x in hidden], per_cell)
        deltas = flatten_predictions([self.box_regression(x).float() for x in hidden], per_cell)
        level_sizes = [x.shape[2] * x.shape[3] * per_cell for x in features]
        return RPNOutput(objectness.squeeze(2), deltas, self.anchors_for(features), level_sizes)

    def anchors_for(self, features: Sequence[Tensor]) -> Tensor:
        """Anchors (A, 4) xyxy in pixels, in the order of the predictions; the same for all N."""
        feature_sizes = [tuple(x.shape[-2:]) for x in features]
        cells = self.cells.to(features[0].device, non_blocking=True)
        return grid_anchors(feature_sizes, self.strides, cells, self.config.rpn_anchor_offset)

    def cells_of_levels(self) -> Tensor:
        """The anchors of a cell of each level, (levels, B, 4), on the host."""
        c = self.config
        sizes = [c.rpn_anchor_size * stride for stride in self.strides]
        whole = c.rpn_anchor_whole_pixels
        return torch.stack([cell_anchors([size], ANCHOR_RATIOS, whole, "cpu") for size in sizes])

    def assign(self, anchors: Tensor, boxes: Sequence[Tensor]) -> Tensor:
        """Match anchors with each image's boxes (M, 4): (N, A) index of the box, or BACKGROUND
        or IGNORE."""
        foreground, background = self.config.rpn_foreground_iou, self.config.rpn_background_iou
        return torch.stack([assign_by_iou(anchors, b, foreground, background, True) for b in boxes])

    def losses(self, output: RPNOutput, boxes: Sequence[Tensor]) -> dict[str, Tensor]:
        """Both terms of Faster R-CNN, equation 1, each divided by the number of sampled anchors.

        Args:
            output: from `forward`.
            boxes: for each image, (M, 4) xyxy: ground truth or proposals; M may be 0.

        Returns:
            {"loss_rpn_objectness", "loss_rpn_box"}, float32 scalars.
        """
        c = self.config
        matched = self.assign(output.anchors, boxes)  # (N, A)
        chosen = sample_balanced(matched, c.rpn_samples, c.rpn_positive_fraction)
        matched = [row[index] for row, index in zip(matched, chosen, strict=True)]  # (S,) per image
        sampled = over_batch(chosen, len(output.anchors))  # (S,), from here on of all images
        index, box = find_positives(matched, boxes)  # (P,) into the samples, (P,)
        normalizer = mean_over_ranks(output.deltas.new_full((), len(sampled)))
        loss_objectness = F.binary_cross_entropy_with_logits(
            output.objectness.flatten()[sampled].float(),
            (torch.cat(matched) >= 0).float(),
            reduction="sum",
        )
        positive = sampled[index]
        loss_box = box_loss(
            c.rpn_box_loss,
            output.deltas.flatten(0, 1)[positive],  # (P, 4)
            output.anchors[positive % len(output.anchors)],
            torch.cat(list(boxes))[box],
            normalizer,
            c.rpn_smooth_l1_beta,
        )
        return {"loss_rpn_objectness": loss_objectness / normalizer, "loss_rpn_box": loss_box}

    @torch.no_grad()
    def propose(
        self,
        output: RPNOutput,
        image_sizes: Tensor | Sequence[tuple[int, int]],
        topk: int,
        limit: int,
    ) -> list[Tensor]:
        """The boxes that most likely hold an object, as constants: no gradient flows through them.

        Args:
            output: from `forward`.
            image_sizes: (N, 2) true (height, width), in pixels; proposals are clipped to them.
            topk: how many anchors a level may keep before non-maximum suppression.
            limit: how many proposals an image may have.

        Returns:
            For each image, (R, 4) xyxy in pixels, R <= limit, best first.
        """
        c = self.config
        numbered = enumerate(output.level_sizes)
        device = output.anchors.device
        levels = torch.cat([torch.full((size,), n, device=device) for n, size in numbered])  # (A,)
        proposals = []
        for n, size in enumerate(torch.as_tensor(image_sizes).tolist()):
            # Logits sort as probabilities do, but do not saturate at 1 where the head is certain.
            logits = output.objectness[n].float()  # (A,)
            index = best_of_levels(logits, output.level_sizes, topk)  # (T,)
            boxes = deltas_to_boxes(output.anchors[index], output.deltas[n, index])
            found = suppress_duplicates(
                boxes, logits[index], levels[index], size, c.rpn_nms_iou, limit, c.rpn_min_size
            )
            proposals.append(found["boxes"])
        return proposals
