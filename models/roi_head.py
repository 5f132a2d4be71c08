"""The second stage of Faster R-CNN: classes and better boxes for regions of interest (Girshick,
"Fast R-CNN", ICCV 2015; on a pyramid: Lin et al., FPN, CVPR 2017, section 4.2).

Legend: N images, R RoIs (of an image or of the batch), M ground-truth boxes, K foreground classes,
G boxes per RoI (K, or 1 if class-agnostic), C channels, F features, P positive RoIs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import roi_align

from losses.normalizer import mean_over_ranks
from models.assign import BACKGROUND, assign_by_iou, find_positives, look_up
from models.box_loss import BOX_LOSSES, box_loss
from models.checks import require_choice, require_range
from models.coders import deltas_to_boxes
from models.indices import true_indices
from models.postprocess import suppress_duplicates, top_candidates
from models.sampling import sample_balanced
from models.tower import NORMS, conv_tower

BOX_HEADS = {"2fc": (0, 2), "4conv1fc": (4, 1)}  # convolutions and fully connected layers
DELTA_WEIGHTS = (10.0, 5.0)  # an RoI is close to its box: deltas are about 0.1 and 0.2
CANONICAL_SIZE, CANONICAL_STRIDE = 224, 16  # an RoI of this size is pooled at this stride


@dataclass(frozen=True)
class RoIHeadConfig:
    """Settings of the box head, its losses and the detections."""

    channels: int = 256  # of the pyramid and of the convolutions
    box_head: str = "4conv1fc"  # or "2fc"
    box_norm: str = "gn"  # after the convolutions of 4conv1fc: "none", "gn" or "bn"
    box_features: int = 1024  # width of the fully connected layers
    class_agnostic: bool = True  # one box per RoI, so that it can be transferred; else per class
    roi_size: int = 7  # an RoI is pooled to this many cells in height and in width
    roi_sampling: int = 2  # points per cell in height and in width; 0: one per map cell within it
    roi_aligned: bool = True  # shift by half a pixel, so that a map's values are at cell centres
    roi_foreground_iou: float = 0.5  # an RoI with at least this IoU is positive, else negative
    roi_samples: int = 512  # RoIs per image in the losses
    roi_positive_fraction: float = 0.25  # of the samples, at most
    box_loss: str = "l1"  # or "smooth_l1", "giou", "iou"
    smooth_l1_beta: float = 1 / 9  # deltas below it cost quadratically
    score_threshold: float = 0.05  # detections score more than this
    nms_iou: float = 0.5  # overlap at which the weaker of two boxes of a class is dropped
    detections_per_image: int = 100  # the best ones, after non-maximum suppression
    min_size: float = 1.0  # px; drops the slivers predicted outside the true image

    # Which weights there are and what their outputs mean; the others may change between trainings.
    NETWORK: ClassVar[tuple[str, ...]] = (
        *("channels", "box_head", "box_norm", "box_features", "roi_size", "roi_sampling"),
        *("roi_aligned",),
    )

    def __post_init__(self) -> None:
        require_choice("model.options.box_head", self.box_head, BOX_HEADS)
        require_choice("model.options.box_norm", self.box_norm, NORMS)
        require_choice("model.options.box_loss", self.box_loss, BOX_LOSSES)
        require_range("model.options.roi_foreground_iou", self.roi_foreground_iou, above=0, most=1)


class RoIOutput(NamedTuple):
    """Raw predictions for the RoIs of all images, image by image."""

    logits: Tensor  # (R, K + 1), background last
    deltas: Tensor  # (R, G, 4) from RoI to box, see `boxes_to_deltas`, float32


class RoIHead(nn.Module):
    """Pooling, box head and outputs, with their losses and detections.

    `classifier` is the class output, `box_regression` the box output. The parts can be called
    separately.
    """

    def __init__(self, config: RoIHeadConfig, num_classes: int, strides: Sequence[int]) -> None:
        super().__init__()
        self.config = config
        self.num_classes = num_classes
        self.strides = tuple(strides)
        channels, width = config.channels, config.box_features
        num_convs, num_fcs = BOX_HEADS[config.box_head]
        self.convs = conv_tower(channels, num_convs, config.box_norm)
        inputs = [channels * config.roi_size**2] + [width] * (num_fcs - 1)
        layers = [(nn.Linear(n, width), nn.ReLU(inplace=True)) for n in inputs]
        self.fcs = nn.Sequential(*[layer for pair in layers for layer in pair])
        self.classifier = nn.Linear(width, num_classes + 1)
        self.box_regression = nn.Linear(width, 4 * (1 if config.class_agnostic else num_classes))
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.normal_(self.box_regression.weight, std=0.001)

    def forward(self, features: Sequence[Tensor], rois: Sequence[Tensor]) -> RoIOutput:
        """Pyramid maps (N, C, H_i, W_i) and RoIs (R, 4) of each image to predictions."""
        box_features = self.box_features(features, rois)
        return RoIOutput(self.classifier(box_features), self.deltas_from(box_features))

    def box_features(self, features: Sequence[Tensor], rois: Sequence[Tensor]) -> Tensor:
        """Features (R, F) of the RoIs of all images, which both outputs take as input."""
        c = self.config
        pooled = pool_rois(features, rois, self.strides, c.roi_size, c.roi_sampling, c.roi_aligned)
        return self.fcs(self.convs(pooled).flatten(1))  # pooled: (R, C, roi_size, roi_size)

    def deltas_from(self, box_features: Tensor) -> Tensor:
        """Deltas (R, G, 4), float32."""
        return self.box_regression(box_features).float().unflatten(1, (-1, 4))

    def assign(self, rois: Sequence[Tensor], boxes: Sequence[Tensor]) -> list[Tensor]:
        """Match each image's RoIs (R, 4) with its boxes (M, 4): (R,) index or BACKGROUND."""
        iou = self.config.roi_foreground_iou
        pairs = zip(rois, boxes, strict=True)
        return [assign_by_iou(r, b, iou, iou, low_quality=False) for r, b in pairs]

    def sample(
        self, rois: Sequence[Tensor], matched: Sequence[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """For each image, the RoIs that enter the losses, and the boxes they are matched with."""
        c = self.config
        chosen = sample_balanced(matched, c.roi_samples, c.roi_positive_fraction)
        rois = [r[index] for r, index in zip(rois, chosen, strict=True)]
        return rois, [m[index] for m, index in zip(matched, chosen, strict=True)]

    def losses(
        self,
        output: RoIOutput,
        rois: Sequence[Tensor],
        matched: Sequence[Tensor],
        targets: Sequence[dict[str, Tensor]],
    ) -> dict[str, Tensor]:
        """Both terms of Fast R-CNN, equation 1, against labelled boxes; all RoIs count."""
        boxes, labels = [t["boxes"] for t in targets], [t["labels"] for t in targets]
        loss_class = self.class_loss(output.logits, matched, labels)
        return {"loss_class": loss_class} | self.box_losses(
            output.deltas, rois, matched, boxes, labels
        )

    def class_loss(
        self, logits: Tensor, matched: Sequence[Tensor], labels: Sequence[Tensor]
    ) -> Tensor:
        """Cross entropy over classes and background, divided by the number of RoIs.

        Args:
            logits: (R, K + 1).
            matched: for each image, (R,) from `assign`.
            labels: for each image, (M,) in 0..K-1.
        """
        flat = torch.cat(look_up(labels, matched))  # (R,) class or BACKGROUND
        classes = flat.where(flat >= 0, self.num_classes)  # background is the last class
        loss = F.cross_entropy(logits.float(), classes, reduction="sum")
        return loss / mean_over_ranks((flat >= BACKGROUND).sum())

    def box_losses(
        self,
        deltas: Tensor,
        rois: Sequence[Tensor],
        matched: Sequence[Tensor],
        boxes: Sequence[Tensor],
        labels: Sequence[Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Box regression loss of the positive RoIs, divided by the number of all RoIs.

        Args:
            deltas: (R, G, 4), for the RoIs of all images.
            rois: for each image, (R, 4) xyxy in pixels.
            matched: for each image, (R,) from `assign`.
            boxes: for each image, (M, 4) xyxy: ground truth or proposals.
            labels: for each image, (M,) in 0..K-1; not needed if boxes are class-agnostic.

        Returns:
            {"loss_box"}, a zero attached to the graph if nothing is positive.
        """
        index, box = find_positives(matched, boxes)  # (P,), (P,)
        group = 0 if deltas.shape[1] == 1 else torch.cat(list(labels))[box]
        count = (torch.cat(list(matched)) >= BACKGROUND).sum()
        loss = box_loss(
            self.config.box_loss,
            deltas[index, group],  # (P, 4)
            torch.cat(list(rois))[index],
            torch.cat(list(boxes))[box],
            mean_over_ranks(count),
            self.config.smooth_l1_beta,
            DELTA_WEIGHTS,
        )
        return {"loss_box": loss}

    def detections(
        self,
        output: RoIOutput,
        rois: Sequence[Tensor],
        image_sizes: Tensor | Sequence[tuple[int, int]],
    ) -> list[dict[str, Tensor]]:
        """One dict per image: boxes (D, 4), scores (D,) descending, labels (D,)."""
        c = self.config
        counts = [len(r) for r in rois]
        scores = output.logits.float().softmax(dim=1)[:, :-1].split(counts)  # (R, K) per image
        deltas = output.deltas.expand(-1, self.num_classes, -1).split(counts)  # (R, K, 4)
        results = []
        for n, size in enumerate(torch.as_tensor(image_sizes).tolist()):
            limit = scores[n].numel()  # RoIs are few: no need to thin them out
            best, index, labels = top_candidates(scores[n], [counts[n]], c.score_threshold, limit)
            boxes = deltas_to_boxes(rois[n][index], deltas[n][index, labels], DELTA_WEIGHTS)
            found = suppress_duplicates(
                boxes, best, labels, size, c.nms_iou, c.detections_per_image, c.min_size
            )
            results.append(found)
        return results


def pool_rois(
    features: Sequence[Tensor],
    rois: Sequence[Tensor],
    strides: Sequence[int],
    size: int,
    sampling: int,
    aligned: bool,
) -> Tensor:
    """RoIAlign (He et al., "Mask R-CNN", section 3) of each RoI on the level for its size.

    Args:
        features: for each level, (N, C, H_i, W_i).
        rois: for each image, (R, 4) xyxy in pixels.
        strides: of each level.
        size: the result's height and width, in cells.
        sampling, aligned: see `roi_sampling` and `roi_aligned` of `RoIHeadConfig`.

    Returns:
        (R, C, size, size), for the RoIs of all images, image by image, float32: in half
        precision a corner would be off by pixels.
    """
    # (R, 5), what roi_align expects: the number of the image, then the box.
    indexed = torch.cat([F.pad(r.float(), (1, 0), value=n) for n, r in enumerate(rois)])
    levels = levels_of(indexed[:, 1:], strides)
    order = true_indices([levels == level for level in range(len(strides))])
    pooled = []
    for x, stride, here in zip(features, strides, order, strict=True):
        pooled.append(roi_align(x.float(), indexed[here], size, 1 / stride, sampling, aligned))
    return torch.cat(pooled).index_select(0, torch.cat(order).argsort())


def levels_of(rois: Tensor, strides: Sequence[int]) -> Tensor:
    """The pyramid level an RoI is pooled from (FPN, equation 1): twice the size, twice the stride.

    Args:
        rois: (R, 4) xyxy, in pixels.
        strides: of each level, doubling from level to level.

    Returns:
        (R,) int64 index into `strides`.
    """
    width, height = (rois[:, 2:] - rois[:, :2]).clamp(min=0).unbind(1)
    stride = (width * height).sqrt() / CANONICAL_SIZE * CANONICAL_STRIDE / strides[0]
    # Rounding errors must not push a size that is meant to be a power of two below it.
    level = (stride.log2() + 1e-6).floor()
    return level.clamp(0, len(strides) - 1).long()
