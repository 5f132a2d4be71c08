"""DETR: a detector that predicts a set of boxes, each from a query of its own.

Carion et al., "End-to-end object detection with transformers" (ECCV 2020, arXiv 2005.12872), whose
sections and equations are named below. There are no anchors and no non-maximum suppression: in
training every box has one query that answers for it.

Legend: N images, Q queries, M ground-truth boxes, K foreground classes, C channels, L decoder
layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import box_convert

from losses.iou import box_iou_loss
from losses.normalizer import mean_over_ranks
from models.anchor_queries import AnchorQueries, Map, anchor_grid
from models.backbone_base import StagedBackbone
from models.checks import require_choice, require_range
from models.indices import true_indices
from models.matcher import PaddedTargets, match_queries, pad_targets
from models.position import encode_cells
from models.targets import check_targets
from models.transformer import Transformer


@dataclass(frozen=True)
class DETRConfig:
    """Settings of the transformer, losses and detections; `model.options` of a run."""

    stride: int = 32  # of the map that the transformer reads: 32 is C5, 16 is C4
    width: int = 256  # channels C of the transformer, a multiple of 4 and of `heads`
    heads: int = 8  # of every attention
    encoder_layers: int = 6
    decoder_layers: int = 6
    feedforward: int = 2048  # width of the two linear layers at the end of each layer
    dropout: float = 0.1
    pre_norm: bool = False  # LayerNorm in front of attention instead of behind the sum
    queries: int = 100  # Q, the most objects that an image can have
    anchors: bool = False  # queries are boxes: learns far faster, see anchor_queries.py
    aux_losses: bool = True  # losses of every decoder layer, else of the last one (section 3.2)
    class_weight: float = 1.0  # of the class, in the matching and in the loss
    box_weight: float = 5.0  # of the L1 distance, in both
    giou_weight: float = 2.0  # of GIoU, in both
    background_weight: float = 0.1  # of queries without a box in the class loss (section 3.1)
    score_threshold: float = 0.0  # detections score more than this
    detections_per_image: int = 100  # the best ones; there are never more than queries
    min_size: float = 1.0  # px; drops slivers at the border of the true image

    # Which weights there are and what their outputs mean; the others may change between trainings.
    NETWORK: ClassVar[tuple[str, ...]] = (
        *("stride", "width", "heads", "encoder_layers", "decoder_layers", "feedforward"),
        *("pre_norm", "queries", "anchors"),
    )

    def __post_init__(self) -> None:
        require_choice("model.options.stride", self.stride, (8, 16, 32))
        for key in ("width", "heads", "decoder_layers", "feedforward", "queries"):
            require_range(f"model.options.{key}", getattr(self, key), least=1)
        require_range("model.options.encoder_layers", self.encoder_layers, least=0)
        require_range("model.options.dropout", self.dropout, least=0, below=1)
        require_range("model.options.background_weight", self.background_weight, above=0)
        for key in ("class_weight", "box_weight", "giou_weight"):
            require_range(f"model.options.{key}", getattr(self, key), least=0)
        if self.width % 4 or self.width % self.heads:
            raise ValueError(
                f"model.options.width is {self.width}; it must be a multiple of 4 and of "
                f"model.options.heads, {self.heads}"
            )


class DETROutput(NamedTuple):
    """Raw predictions of all decoder layers; the last ones are the detector's."""

    decoded: Tensor  # (L, N, Q, C) what both outputs read, layer-normalised
    logits: Tensor  # (L, N, Q, K + 1), background last
    # (L, N, Q, 4) cx, cy, w, h in fractions of the true image's width and height, in 0..1, float32
    boxes: Tensor

    def last(self) -> DETROutput:
        """Of the last decoder layer alone, L = 1."""
        return DETROutput(*(of_layers[-1:] for of_layers in self))


class DETR(nn.Module):
    """Backbone, transformer and two outputs per query, with their losses and detections."""

    def __init__(self, backbone: StagedBackbone, config: DETRConfig, num_classes: int) -> None:
        super().__init__()
        self.config = config
        self.num_classes = num_classes
        self.backbone = backbone
        self.strides = (config.stride,)
        self.level = backbone.strides.index(config.stride)
        backbone.skip_maps(self.level)
        for module in (m for stage in backbone.stages[self.level + 2 :] for m in stage):
            module.requires_grad_(False)  # nothing reads them: they would never get a gradient
        width = config.width
        self.input_projection = nn.Conv2d(backbone.channels[self.level], width, 1)
        self.query_embedding = nn.Embedding(config.queries, 4 if config.anchors else width)
        if config.anchors:
            self.anchor_queries = AnchorQueries(width, config.heads)
        self.transformer = Transformer(
            width,
            config.heads,
            config.encoder_layers,
            config.decoder_layers,
            config.feedforward,
            config.dropout,
            config.pre_norm,
        )
        self.classifier = nn.Linear(width, num_classes + 1)
        self.box_regression = nn.Sequential(
            nn.Linear(width, width),
            nn.ReLU(inplace=True),
            nn.Linear(width, width),
            nn.ReLU(inplace=True),
            nn.Linear(width, 4),
        )
        if config.anchors:  # which are the first boxes
            self.query_embedding.weight.data = anchor_grid(config.queries)
            nn.init.zeros_(self.box_regression[-1].weight)
            nn.init.zeros_(self.box_regression[-1].bias)

    def forward(
        self,
        images: Tensor,
        image_sizes: Tensor | Sequence[tuple[int, int]],
        targets: Sequence[dict[str, Tensor]] | None = None,
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Losses if `targets` are given, detections if not; in train and eval mode alike.

        Args:
            images: (N, 3, H, W), normalised, padded on the right and below.
            image_sizes: (N, 2) true (height, width) before padding, in pixels.
            targets: one dict per image: boxes (M, 4) xyxy in pixels, labels (M,) int64 in 0..K-1;
                M may be 0.

        Returns:
            {"loss_class", "loss_box", "loss_giou"}, float32 scalars, or one dict per image:
            boxes (D, 4) xyxy inside the true image, scores (D,) descending, labels (D,).
        """
        sizes = torch.as_tensor(image_sizes).to(images.device, non_blocking=True)
        output = self.predictions(images, sizes[:, 0].clone(), sizes[:, 1].clone())
        if targets is None:
            return self.detections(output, image_sizes)
        check_targets(targets, images, image_sizes, self.num_classes)
        output = output if self.config.aux_losses else output.last()
        sides = sides_of(sizes)
        padded = pad_targets(targets, sides)
        return self.losses(output, padded, self.match(output, padded), sides)

    def predictions(self, images: Tensor, heights: Tensor, widths: Tensor) -> DETROutput:
        """All layers of the detector, see `decode`.

        Heights and widths are tensors of their own: a graph that is compiled with two images would
        take a 2 in their shape or stride for the number of images, and not hold for three.
        """
        return self.decode(self.backbone(images), heights, widths)

    def pyramid(self, images: Tensor) -> list[Tensor]:
        """The one map that the transformer reads, as it leaves the backbone."""
        return [self.backbone(images)[self.level]]

    def decode(
        self,
        features: Sequence[Tensor],
        heights: Tensor,
        widths: Tensor,
        queries: Tensor | None = None,
    ) -> DETROutput:
        """From maps to objects: all layers but the backbone.

        Args:
            features: [C2, C3, C4, C5] of the backbone.
            heights, widths: (N,) true ones of the images before padding, in pixels, on their
                device.
            queries: the weight of `query_embedding`, or that of another branch; None takes its own.
        """
        stride = self.config.stride
        cells = self.input_projection(features[self.level])  # (N, C, h, w)
        size, cells = cells.shape[2:], cells.flatten(2).transpose(1, 2)  # (N, h * w, C)
        positions, inside = encode_cells(heights, widths, size, stride, self.config.width)
        queries = self.query_embedding.weight if queries is None else queries
        memory = self.transformer.encode(cells, positions, inside)
        if self.config.anchors:
            encoded = Map(memory, positions, inside, heights, widths, size, stride)
            decoded, boxes = self.anchor_queries.decode(
                self.transformer, self.box_regression, encoded, queries
            )
        else:
            decoded = self.transformer.decode(memory, positions, inside, queries)
            boxes = self.box_regression(decoded).float()
        return DETROutput(decoded, self.classifier(decoded), boxes.sigmoid())

    def match(self, output: DETROutput, targets: PaddedTargets, with_class: bool = True) -> Tensor:
        """The box that each query of each layer answers for, see `match_queries`: (L, N, Q).

        `with_class=False` lets the boxes alone decide.
        """
        c = self.config
        class_weight = c.class_weight if with_class else 0.0
        return match_queries(
            output.logits, output.boxes, targets, class_weight, c.box_weight, c.giou_weight
        )

    def losses(
        self, output: DETROutput, targets: PaddedTargets, matched: Tensor, sides: Tensor
    ) -> dict[str, Tensor]:
        """The three terms of equation 2, weighted, and summed over the layers.

        Args:
            output, targets: see there.
            matched: (L, N, Q) from `match`, or (1, N, Q) for all layers alike.
            sides: (N, 4) from `sides_of`.
        """
        matched = matched.expand(len(output.boxes), -1, -1)
        loss_class = self.class_loss(output.logits, matched, targets.labels)
        box_terms = self.box_losses(output.boxes, matched, targets, sides)
        return {"loss_class": loss_class, **box_terms}

    def class_loss(self, logits: Tensor, matched: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy of all queries, as a weighted mean, summed over the layers.

        Args:
            logits: (L, N, Q, K + 1).
            matched: (L, N, Q) from `match`.
            labels: (N, M).
        """
        index = matched.clamp(min=0)
        of_box = labels.expand(len(matched), -1, -1).gather(2, index)
        classes = torch.where(matched >= 0, of_box, self.num_classes).flatten()
        weights = torch.where(matched >= 0, 1.0, self.config.background_weight).flatten()
        losses = F.cross_entropy(logits.flatten(0, 2).float(), classes, reduction="none")
        # Of one layer: they all have the same number of boxes.
        normalizer = mean_over_ranks(weights.sum() / len(matched), minimum=1e-6)
        loss = (losses * weights).sum()
        return self.config.class_weight * loss / normalizer

    def box_losses(
        self, boxes: Tensor, matched: Tensor, targets: PaddedTargets, sides: Tensor
    ) -> dict[str, Tensor]:
        """L1 and GIoU of the queries that have a box, divided by the number of boxes; no labels.

        Queries without a box count 0 times: to pick out the others, a GPU would be waited for.

        Args:
            boxes: (L, N, Q, 4).
            matched: (L, N, Q) from `match`.
            targets: their labels are not used.
            sides: (N, 4) from `sides_of`.

        Returns:
            {"loss_box", "loss_giou"}, zeros attached to the graph if there are no boxes.
        """
        index = matched.clamp(min=0)[..., None].expand_as(boxes)
        goals = targets.boxes.expand(len(boxes), -1, -1, -1).gather(2, index)  # (L, N, Q, 4)
        counted = (matched >= 0).float()  # (L, N, Q)
        number = mean_over_ranks(boxes.new_full((), sum(targets.counts)))
        distance = (boxes - goals).abs().sum(dim=3)
        loss_box = (distance * counted).sum() / number
        corners, goal_corners = (to_pixels(b, sides).flatten(0, 2) for b in (boxes, goals))
        loss_giou = box_iou_loss(corners, goal_corners, "giou", counted.flatten(), number)
        return {
            "loss_box": self.config.box_weight * loss_box,
            "loss_giou": self.config.giou_weight * loss_giou,
        }

    def detections(
        self, output: DETROutput, image_sizes: Tensor | Sequence[tuple[int, int]]
    ) -> list[dict[str, Tensor]]:
        """Turn the last layer's predictions into detections, see `forward`; waits once on a GPU.

        A query detects the class that it finds most probable, apart from background.
        """
        c = self.config
        sizes = torch.as_tensor(image_sizes).to(output.logits.device, non_blocking=True)
        probability = output.logits[-1].float().softmax(dim=2)[..., :-1]  # (N, Q, K)
        scores, labels = probability.max(dim=2)
        scores, order = scores.sort(dim=1, descending=True, stable=True)
        labels = labels.gather(1, order)
        boxes = output.boxes[-1].gather(1, order[..., None].expand(-1, -1, 4))
        sides = sides_of(sizes)
        boxes = torch.minimum(to_pixels(boxes, sides).clamp(min=0), sides[:, None])
        large = ((boxes[..., 2:] - boxes[..., :2]) >= c.min_size).all(dim=2)
        found = true_indices(list(large & (scores > c.score_threshold)))
        kept = [index[: c.detections_per_image] for index in found]
        return [
            {"boxes": boxes[n, index], "scores": scores[n, index], "labels": labels[n, index]}
            for n, index in enumerate(kept)
        ]


def sides_of(sizes: Tensor) -> Tensor:
    """(N, 2) heights and widths to (N, 4) width, height, width, height: the sides of the images by
    which boxes (cx, cy, w, h) and (x1, y1, x2, y2) are divided."""
    return sizes.flip(1).repeat(1, 2).float()


def to_pixels(boxes: Tensor, sides: Tensor) -> Tensor:
    """Boxes (..., N, Q, 4) cx, cy, w, h in fractions to xyxy in pixels; `sides` (N, 4)."""
    return box_convert(boxes, "cxcywh", "xyxy") * sides[:, None]
