"""Box-domain pre-training (AlignDet, section 3.3): neck and head learn from unlabelled boxes.

One step: view 1 goes through the online branch, view 2 through the target branch; predictions that
belong to the same proposal attract each other, all others repel (contrastive loss), and the online
branch learns to find the proposals (the detector's own box losses). The backbone comes from
image-domain pre-training and is frozen.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from aligndet import dist
from aligndet.adapters import BranchOutput, adapter_class
from aligndet.momentum import momentum_at, update_target
from losses.contrastive import Pairs, contrastive_loss, contrastive_statistics, find_pairs
from models.checks import require_range


@dataclass(frozen=True)
class BoxDomainConfig:
    """The `box_domain` section."""

    embedding_width: int = 256  # D of the projector's output
    # tau of the contrastive loss; the paper's 0.5 measured worse (docs/results_first_study.md)
    temperature: float = 0.2
    # Predictions of a view to contrast: per batch for FCOS, per image for the others; null takes
    # the paper's number for the detector (docs/adapters.md).
    samples: int | None = None
    momentum: float = 0.996  # of the target at the start; it rises to 1
    contrast_weight: float = 1.0  # of the contrastive loss
    box_weight: float = 1.0  # of the detector's box losses
    # Of the mask loss, where a detector has one; 0 needs no masks of the proposals and leaves the
    # mask head random, as the authors do.
    mask_weight: float = 1.0
    # Of the detector's class loss against pseudo-classes of the proposals (docs/clusters.md); 0
    # needs none, and leaves the classification layer out.
    cluster_weight: float = 0.0
    clusters: int = 256  # pseudo-classes that are found at the start if the proposals have none
    across_ranks: bool = False  # contrast with the samples of all ranks; the paper does not
    # The best-ranked boxes of each image; null takes all. 10 measured better where images show a
    # few objects, 100 where they show dozens (docs/ideas.md).
    max_proposals: int | None = 50
    freeze_backbone: bool = True  # false trains it too, if there are no image-domain weights

    def __post_init__(self) -> None:
        require_range("box_domain.temperature", self.temperature, above=0)
        require_range("box_domain.momentum", self.momentum, least=0, most=1)
        for key in ("mask_weight", "cluster_weight"):
            require_range(f"box_domain.{key}", getattr(self, key), least=0)
        for key in ("embedding_width", "samples", "max_proposals", "clusters"):
            require_range(f"box_domain.{key}", getattr(self, key), least=1)


class BoxDomain(nn.Module):
    """Both branches and the backbone they share.

    Args:
        detector: built by `models.build_detector`, with as many classes as there are
            pseudo-classes if `cluster_weight` is above 0; modified in place.
        name: its key in `aligndet.adapters.ADAPTERS`.
    """

    def __init__(self, detector: nn.Module, name: str, config: BoxDomainConfig) -> None:
        super().__init__()
        self.config = config
        self.num_classes = detector.num_classes  # pseudo-classes, or 1
        self.backbone = detector.backbone
        if config.freeze_backbone:
            self.backbone.freeze(len(self.backbone.stages))
        detector.backbone = None  # shared here; a copy in the target would serve no purpose
        self.online = adapter_class(name)(
            detector, config.embedding_width, config.samples, config.cluster_weight > 0
        )
        if not config.mask_weight:
            self.online.leave_masks_out()
        # After all initialisation, so that both branches start equal.
        self.target = copy.deepcopy(self.online).requires_grad_(False)

    def forward(
        self, batch: tuple[dict[str, Any], dict[str, Any]], with_statistics: bool = True
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """One step's losses.

        Args:
            batch: two views, each a dict of `images` (N, 3, H, W), `image_sizes` (N, 2) and
                `boxes`: per image (M, 4) xyxy; box k of both views is the same instance. The first
                has `masks` and `labels` too where they are learned, see `Adapter.forward`.
            with_statistics: whether this step logs statistics.

        Returns:
            Losses to sum, `loss_contrast` and the detector's own; and statistics to log, see
            `statistics`.
        """
        view1, view2 = batch
        ids = instance_ids(view1["boxes"])
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.config.freeze_backbone):
            features1 = self.backbone(view1["images"])
        online = self.online(features1, view1, ids, with_losses=True)
        with torch.no_grad():
            features2 = self.backbone(view2["images"])
            target = self.target(features2, view2, ids, with_losses=False, online=online)
        config = self.config
        pairs = find_pairs(
            online.embeddings, target.embeddings, online.ids, target.ids, config.across_ranks
        )
        contrast = contrastive_loss(pairs, config.temperature)
        losses = {"loss_contrast": config.contrast_weight * contrast}
        weights = {"loss_mask": config.mask_weight, "loss_class": config.cluster_weight}
        for name, loss in online.losses.items():
            losses[name] = weights.get(name, config.box_weight) * loss
        if not with_statistics:
            return losses, {}
        return losses, self.statistics(pairs, contrast, online, view1["boxes"])

    def statistics(
        self, pairs: Pairs, contrast: Tensor, online: BranchOutput, boxes: Sequence[Tensor]
    ) -> dict[str, Tensor]:
        """Scalars to log: those of `contrastive_statistics` and `Adapter.statistics`,
        `contrast_minus_floor`, and `without_boxes`, the share of the images.

        Args:
            pairs, contrast: the contrastive loss, not yet weighted, and what it is of.
            online: output of the online branch.
            boxes: of each image, (M, 4).
        """
        values = contrastive_statistics(pairs, self.config.temperature)
        values["contrast_minus_floor"] = contrast.detach() - values["contrast_floor"]
        empty = sum(len(of_image) == 0 for of_image in boxes) / len(boxes)
        values["without_boxes"] = contrast.new_full((), empty)
        return values | self.online.statistics(online.matched)

    def update_target(self, step: int, total_steps: int) -> dict[str, float]:
        """Move the target towards the online branch; call after each optimiser step. BatchNorm that
        is trained has the same statistics on all ranks afterwards.

        Args:
            step: steps done so far, from 0.
            total_steps: length of the run.

        Returns:
            The momentum used, to log.
        """
        dist.average_statistics(self)
        momentum = momentum_at(step, total_steps, self.config.momentum)
        update_target(self.target, self.online, momentum)
        return {"momentum": momentum}

    def weights(self) -> dict[str, Tensor]:
        """What fine-tuning starts from: backbone and online branch, named as in the detector, and
        the projector, which it drops."""
        backbone = self.backbone.state_dict()
        return {f"backbone.{k}": v for k, v in backbone.items()} | self.online.weights()


def instance_ids(boxes: Sequence[Tensor]) -> list[Tensor]:
    """Consecutive ids, one per box, unique over the batch; the first image's start at 0."""
    ids = torch.arange(sum(len(b) for b in boxes), device=boxes[0].device)
    return list(ids.split([len(b) for b in boxes]))
