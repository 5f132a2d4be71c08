"""The mask branch of Mask R-CNN: which pixels of a box belong to its object (He et al., ICCV 2017,
section 3).

Legend: N images, R RoIs (of an image or of the batch), M ground-truth boxes, D detections,
K foreground classes, G masks per RoI (K, or 1 if class-agnostic), C channels, S side of a predicted
mask in cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import roi_align

from losses.normalizer import mean_over_ranks
from models.assign import look_up
from models.checks import require_choice
from models.indices import true_indices
from models.roi_head import pool_rois
from models.sampling import random_part
from models.tower import NORMS, conv_tower

MASKS_AT_ONCE = 16  # full-size masks of an image that are in memory as floats at a time


@dataclass(frozen=True)
class MaskHeadConfig:
    """Settings of the mask head and its loss."""

    channels: int = 256  # of the pyramid and of the convolutions
    mask_convs: int = 4  # 3x3 convolutions before the upsampling
    mask_norm: str = "gn"  # after them: "none", "gn" or "bn"
    mask_class_agnostic: bool = True  # one mask per RoI, to be transferred; else per class
    mask_roi_size: int = 14  # an RoI is pooled to this many cells; its mask has twice as many
    roi_sampling: int = 2  # see `RoIHeadConfig`
    roi_aligned: bool = True  # see `RoIHeadConfig`; also how masks are cut out for the loss

    # Which weights there are and what their outputs mean; the others may change between trainings.
    NETWORK: ClassVar[tuple[str, ...]] = (
        *("channels", "mask_convs", "mask_norm", "mask_roi_size", "roi_sampling", "roi_aligned"),
    )

    def __post_init__(self) -> None:
        require_choice("model.options.mask_norm", self.mask_norm, NORMS)


class MaskHead(nn.Module):
    """Pooling, convolutions and mask output, with their loss and the masks of detections.

    `predictor` is the mask output. The parts can be called separately.
    """

    def __init__(self, config: MaskHeadConfig, num_classes: int, strides: Sequence[int]) -> None:
        super().__init__()
        self.config = config
        self.strides = tuple(strides)
        channels = config.channels
        self.convs = conv_tower(channels, config.mask_convs, config.mask_norm)
        self.upsample = nn.ConvTranspose2d(channels, channels, kernel_size=2, stride=2)
        self.predictor = nn.Conv2d(channels, 1 if config.mask_class_agnostic else num_classes, 1)
        for module in self.convs:
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        # Kaiming's rule for the single cell that each cell of its result is computed from.
        nn.init.normal_(self.upsample.weight, std=(2 / channels) ** 0.5)
        nn.init.normal_(self.predictor.weight, std=0.001)
        nn.init.zeros_(self.upsample.bias)
        nn.init.zeros_(self.predictor.bias)

    def forward(self, features: Sequence[Tensor], rois: Sequence[Tensor]) -> Tensor:
        """Pyramid maps (N, C, H_i, W_i) and RoIs (R, 4) of each image to mask logits (R, G, S, S)
        of the RoIs of all images, float32."""
        return self.logits_from(self.mask_features(features, rois))

    def mask_features(self, features: Sequence[Tensor], rois: Sequence[Tensor]) -> Tensor:
        """Features (R, C, S/2, S/2) of the RoIs of all images, image by image."""
        c = self.config
        size, sampling, aligned = c.mask_roi_size, c.roi_sampling, c.roi_aligned
        return self.convs(pool_rois(features, rois, self.strides, size, sampling, aligned))

    def logits_from(self, mask_features: Tensor) -> Tensor:
        """Logits (R, G, S, S), float32."""
        return self.predictor(F.relu(self.upsample(mask_features), inplace=True)).float()

    def positives(
        self,
        rois: Sequence[Tensor],
        matched: Sequence[Tensor],
        masks: Sequence[Tensor],
        limit: int | None = None,
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The RoIs that learn a mask: those matched with a box that has one; on a GPU this waits
        once, whatever N is.

        Args:
            rois: for each image, (R, 4) xyxy in pixels.
            matched: for each image, (R,) from `RoIHead.assign`.
            masks: for each image, (M, H, W) 0 or 1, see `losses`; all zeros: the box has no mask.
            limit: how many RoIs per image to draw at random if there are more; None: all.

        Returns:
            For each image, such RoIs and the indices of their boxes.
        """
        has_mask = [of_image.flatten(1).any(dim=1).long() for of_image in masks]  # (M,)
        chosen = true_indices([found == 1 for found in look_up(has_mask, matched)])
        if limit is not None:
            chosen = [random_part(index, limit) for index in chosen]
        rois = [r[index] for r, index in zip(rois, chosen, strict=True)]
        return rois, [m[index] for m, index in zip(matched, chosen, strict=True)]

    def losses(
        self,
        logits: Tensor,
        rois: Sequence[Tensor],
        matched: Sequence[Tensor],
        masks: Sequence[Tensor],
        labels: Sequence[Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Binary cross entropy of the mask of each RoI's own class (section 3, L_mask), the mean
        over cells and RoIs; all RoIs count.

        Args:
            logits: (R, G, S, S) for the RoIs of all images.
            rois, matched: from `positives`.
            masks: for each image, (M, H, W) 0 or 1, uint8 or bool, in the pixels of the image.
            labels: for each image, (M,) in 0..K-1; not needed if masks are class-agnostic.

        Returns:
            {"loss_mask"}, float32, >= 0; a zero attached to the graph if there are no RoIs.
        """
        size = logits.shape[-1]
        goals = [
            cut_masks(*of_image, size, self.config.roi_aligned)
            for of_image in zip(masks, rois, matched, strict=True)
        ]
        if logits.shape[1] > 1:
            classes = torch.cat([y[m] for y, m in zip(labels, matched, strict=True)])  # (R,)
            logits = of_classes(logits, classes)
        loss = F.binary_cross_entropy_with_logits(
            logits.flatten(0, 1), torch.cat(goals), reduction="sum"
        )
        count = mean_over_ranks(logits.new_full((), len(logits)))
        return {"loss_mask": loss / (count * size**2)}

    def detections(
        self, features: Sequence[Tensor], found: Sequence[dict[str, Tensor]]
    ) -> list[dict[str, Tensor]]:
        """Add to the detections of each image `masks` (D, S, S): the probability, in 0..1, that a
        cell of the box belongs to the object; `paste_masks` puts them into the image."""
        logits = self(features, [of_image["boxes"] for of_image in found])
        if logits.shape[1] > 1:
            logits = of_classes(logits, torch.cat([of_image["labels"] for of_image in found]))
        masks = logits.squeeze(1).sigmoid().split([len(of_image["boxes"]) for of_image in found])
        return [{**of_image, "masks": m} for of_image, m in zip(found, masks, strict=True)]


def of_classes(logits: Tensor, classes: Tensor) -> Tensor:
    """The masks (R, 1, S, S) of class `classes` (R,) among those of all classes (R, K, S, S)."""
    return logits[torch.arange(logits.shape[0], device=logits.device), classes].unsqueeze(1)


def cut_masks(masks: Tensor, rois: Tensor, matched: Tensor, size: int, aligned: bool) -> Tensor:
    """What the head should predict for RoIs: the part of the box's mask in the RoI, resized.

    Args:
        masks: (M, H, W) 0 or 1, of one image, uint8 or bool.
        rois: (R, 4) xyxy, in its pixels.
        matched: (R,) in 0..M-1.
        size: S.
        aligned: as features are pooled, see `RoIHeadConfig.roi_aligned`.

    Returns:
        (R, S, S) in 0..1: the share of a cell that belongs to the object, by RoIAlign with as many
        points per cell as there are pixels.
    """
    rois = rois.float()
    result = rois.new_zeros(len(rois), size, size)
    for first in range(0, len(masks), MASKS_AT_ONCE):
        some = masks[first : first + MASKS_AT_ONCE, None].float()
        here = (matched >= first) & (matched < first + MASKS_AT_ONCE)
        indexed = torch.cat(((matched - first)[:, None].float(), rois), dim=1)  # (R, 5)
        # Which RoIs are here is not known on the host: the others become a point of mask 0.
        cut = roi_align(some, indexed * here[:, None], size, 1.0, -1, aligned).squeeze(1)
        result = torch.where(here[:, None, None], cut, result)
    return result


def paste_masks(
    masks: Tensor, boxes: Tensor, size: tuple[int, int], threshold: float = 0.5
) -> Tensor:
    """Put the masks of boxes into the image, equal to torchvision's `paste_masks_in_image`.

    One mask at a time is resized, so beside the result this takes the memory of one box.

    Args:
        masks: (D, S, S) probabilities inside the boxes, in 0..1.
        boxes: (D, 4) xyxy, in pixels of the image.
        size: (height, width) of the image, in pixels.
        threshold: a pixel whose probability is above it belongs to the object.

    Returns:
        (D, height, width) uint8, 0 or 1.
    """
    height, width = size
    result = torch.zeros(len(masks), height, width, dtype=torch.uint8, device=masks.device)
    # Outside of the box the object fades out over one cell, instead of going on to infinity.
    padded = F.pad(masks.float(), (1, 1, 1, 1))  # (D, S + 2, S + 2)
    places = whole_pixels(boxes, padded.shape[-1] / masks.shape[-1])
    for number, (left, top, right, bottom) in enumerate(places.tolist()):
        first_x, end_x = max(left, 0), min(right, width)
        first_y, end_y = max(top, 0), min(bottom, height)
        if first_x < end_x and first_y < end_y:
            place = (bottom - top, right - left)
            resized = F.interpolate(padded[number, None, None], place, mode="bilinear")[0, 0]
            inside = resized[first_y - top : end_y - top, first_x - left : end_x - left]
            result[number, first_y:end_y, first_x:end_x] = inside > threshold
    return result


def whole_pixels(boxes: Tensor, scale: float) -> Tensor:
    """Boxes (D, 4) made larger around their centres, as (left, top, right, bottom) int64 with
    right and bottom just outside; each holds a pixel at least."""
    centers, halves = (boxes[:, :2] + boxes[:, 2:]) * 0.5, (boxes[:, 2:] - boxes[:, :2]) * 0.5
    first = (centers - halves * scale).long()
    last = (centers + halves * scale).long()
    return torch.cat((first, torch.maximum(last, first) + 1), dim=1)
