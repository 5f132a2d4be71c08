"""`pretrain.py` with ideas for a better box-domain pre-training, to measure what each is worth.

    python -m experiments.variants --variant '{classes: 64, background: 0.25}' --config FILE

Ideas that helped are in the product; the others are kept here with the study that judged them.

Legend: Q online samples, S target samples, P samples to contrast with, I instances, K
pseudo-classes, M boxes of an image, F features of the frozen backbone, D embedding width.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
import yaml
from PIL import Image
from torch import Tensor, nn
from torchvision.ops import roi_align

import pretrain
from aligndet import adapters
from aligndet.box_domain import BoxDomain, instance_ids
from data import transforms
from data.transforms import Augment
from data.views import TwoViewDataset, limit_boxes
from losses.contrastive import BACKGROUND, NO_NEGATIVE, find_pairs
from models.from_mapping import from_mapping
from models.sampling import sample_balanced


@dataclass(frozen=True)
class Variant:
    """What differs from `pretrain.py`; the defaults do nothing."""

    save: str = "online"  # fine-tuning starts from this branch, or "target", or their "mean"
    likeness: float | None = None  # no contrast above this cosine of frozen features
    background: float = 0.0  # share of the samples that positives leave to background
    one_match: bool = False  # DETR's online branch alone decides which query answers for which box
    both_views: bool = False  # the other online samples of an instance attract too
    predictor: bool = False  # two more layers on the online embeddings (BYOL)
    queue: int = 0  # target embeddings of earlier steps to contrast with
    classes: int = 0  # clusters of frozen features that the detector's class loss has to tell apart
    class_weight: float = 1.0  # of that loss
    zoom: float | None = None  # views show at least this share of an image's area
    operations: int = 1  # photometric operations per view


class VariantBoxDomain(BoxDomain):
    """`BoxDomain` with the ideas that concern losses and weights."""

    variant = Variant()

    def __init__(self, detector: nn.Module, name: str, config: Any) -> None:
        variant = self.variant
        if variant.classes:
            give_classes(detector, variant.classes)
        if variant.background:
            fraction = {"positive_fraction": 1 - variant.background}
            adapters.sample_balanced = lambda matched, count, positive_fraction: sample_balanced(
                matched, count, **fraction
            )
        classes = variant.class_weight if variant.classes else 0.0
        super().__init__(detector, name, replace(config, cluster_weight=classes))
        width = config.embedding_width
        self.predictor = None
        if variant.predictor:
            layers = (nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
            self.predictor = nn.Sequential(*layers)
        if variant.queue:
            empty = torch.zeros(variant.queue, width)
            self.register_buffer("queue", empty, persistent=False)
            self.queued = 0
        if variant.classes:
            self.clusters = Clusters(variant.classes)

    def forward(self, batch, with_statistics=True):
        """See `BoxDomain.forward`."""
        variant, config = self.variant, self.config
        view1, view2 = batch
        ids = instance_ids(view1["boxes"])
        with torch.set_grad_enabled(torch.is_grad_enabled() and not config.freeze_backbone):
            features1 = self.backbone(view1["images"])
        with torch.no_grad():
            features2 = self.backbone(view2["images"])
            instances = None
            if variant.likeness is not None or variant.classes:
                features = (features1, features2)
                boxes = (view1["boxes"], view2["boxes"])
                pooled = (pooled_features(*view) for view in zip(features, boxes, strict=True))
                instances = F.normalize(sum(pooled), dim=1)  # (I, F)
        if variant.classes:
            labels = self.clusters.assign(instances).split([len(b) for b in view1["boxes"]])
            view1 = {**view1, "labels": labels}
        online = self.online(features1, view1, ids, with_losses=True)
        with torch.no_grad():
            if variant.one_match:
                self.target.match = lambda *_: (online.matched, {})
            target = self.target(features2, view2, ids, with_losses=False, online=online)
        embeddings = online.embeddings
        if self.predictor is not None:
            embeddings = F.normalize(self.predictor(embeddings).float(), dim=1)
        contrast = self.contrast(embeddings, target, online.ids, instances)
        losses = {"loss_contrast": config.contrast_weight * contrast}
        for name, loss in online.losses.items():
            weight = variant.class_weight if name == "loss_class" else config.box_weight
            losses[name] = weight * loss
        if not with_statistics:
            return losses, {}
        pairs = find_pairs(embeddings, target.embeddings, online.ids, target.ids)
        return losses, self.statistics(pairs, contrast, online, view1["boxes"])

    def contrast(
        self, query: Tensor, target, query_ids: Tensor, instances: Tensor | None
    ) -> Tensor:
        """The equation of `losses.contrastive` with other positives and negatives."""
        key, key_ids, tau = target.embeddings.float(), target.ids, self.config.temperature
        pool, pool_ids = torch.cat([key, query.detach()]), torch.cat([key_ids, query_ids])
        same = (query_ids[:, None] == pool_ids) & (query_ids[:, None] >= 0)  # (Q, P)
        positive = same.clone()
        own = torch.arange(len(query), device=query.device)
        if self.variant.both_views:
            positive[own, len(key) + own] = False
        else:
            positive[:, len(key) :] = False
        left_out = same | ((query_ids[:, None] == BACKGROUND) & (pool_ids == BACKGROUND))
        if self.variant.likeness is not None:
            alike = instances @ instances.T > self.variant.likeness  # (I, I)
            known = (query_ids[:, None] >= 0) & (pool_ids >= 0)
            of_pairs = alike[query_ids.clamp(min=0)][:, pool_ids.clamp(min=0)]
            left_out = left_out | (known & of_pairs)
        if self.variant.queue:
            earlier = self.queue[: min(self.queued, len(self.queue))]
            pool = torch.cat([pool, earlier])
            left_out = F.pad(left_out, (0, len(earlier)))
            positive = F.pad(positive, (0, len(earlier)))
            self.enqueue(key[key_ids >= 0])
        similarity = (query / tau) @ pool.T
        negatives = similarity.masked_fill(left_out, NO_NEGATIVE).logsumexp(dim=1)
        of_query = positive.sum(dim=1)
        rows = of_query > 0
        in_query = (query_ids[:, None] == query_ids).sum(dim=1)
        num_ids = (rows / in_query).sum().clamp(min=1.0)
        loss = F.softplus(negatives[:, None] - similarity) * positive
        per_query = loss.sum(dim=1) / of_query.clamp(min=1)
        return (per_query / in_query)[rows].sum() / num_ids + query.sum() * 0.0

    @torch.no_grad()
    def enqueue(self, keys: Tensor) -> None:
        """Replace the oldest entries of the queue."""
        keys = keys[: len(self.queue)]
        place = torch.arange(self.queued, self.queued + len(keys)) % len(self.queue)
        self.queue[place] = keys
        self.queued += len(keys)

    def weights(self) -> dict[str, Tensor]:
        """See `BoxDomain.weights`."""
        online = super().weights()
        if self.variant.save == "online":
            return online
        backbone = {name: value for name, value in online.items() if name.startswith("backbone.")}
        target = backbone | self.target.weights()
        if self.variant.save == "target":
            return target
        return {
            name: (value + target[name]) / 2 if value.is_floating_point() else value
            for name, value in online.items()
        }


class Clusters:
    """Online spherical k-means of the features of instances."""

    def __init__(self, number: int, momentum: float = 0.99, warm_up: int = 2048) -> None:
        self.number, self.momentum, self.warm_up = number, momentum, warm_up
        self.seen: list[Tensor] = []  # until there are enough to begin with
        self.centres: Tensor | None = None  # (K, F) of unit length

    def assign(self, features: Tensor) -> Tensor:
        """The cluster of each instance, (I,); 0 for all until there are centres."""
        if self.centres is None:
            self.seen.append(features)
            if sum(map(len, self.seen)) >= self.warm_up:
                self.begin(torch.cat(self.seen))
            return features.new_zeros(len(features), dtype=torch.int64)
        nearest = (features @ self.centres.T).argmax(dim=1)
        sums = torch.zeros_like(self.centres).index_add_(0, nearest, features)
        counts = torch.bincount(nearest, minlength=self.number)[:, None]
        moved = self.momentum * self.centres + (1 - self.momentum) * sums / counts.clamp(min=1)
        self.centres = F.normalize(torch.where(counts > 0, moved, self.centres), dim=1)
        return nearest

    def begin(self, features: Tensor) -> None:
        """Ten rounds of k-means from random instances."""
        centres = features[torch.randperm(len(features))[: self.number]]
        for _ in range(10):
            nearest = (features @ centres.T).argmax(dim=1)
            sums = torch.zeros_like(centres).index_add_(0, nearest, features)
            empty = torch.bincount(nearest, minlength=self.number)[:, None] == 0
            centres = F.normalize(torch.where(empty, centres, sums), dim=1)
        self.centres, self.seen = centres, []


def pooled_features(features: Sequence[Tensor], boxes: Sequence[Tensor]) -> Tensor:
    """Mean of C4 and of C5 in each box, each of unit length: (I, F)."""
    pooled = []
    for stride, of_stage in zip((16, 32), features[2:], strict=True):
        boxes = [b.to(of_stage.dtype) for b in boxes]
        cells = roi_align(of_stage, boxes, (2, 2), 1 / stride, sampling_ratio=2, aligned=True)
        pooled.append(F.normalize(cells.mean(dim=(2, 3)), dim=1))
    return torch.cat(pooled, dim=1)


def give_classes(detector: nn.Module, number: int) -> None:
    """Replace the classifier of FCOS or RetinaNet by one for `number` classes."""
    head = detector.head
    anchors = getattr(head, "num_anchors", 1)
    head.cls_logits = nn.Conv2d(detector.config.channels, anchors * number, 3, padding=1)
    nn.init.normal_(head.cls_logits.weight, std=0.01)
    prior = detector.config.prior
    nn.init.constant_(head.cls_logits.bias, math.log(prior / (1 - prior)))
    detector.num_classes = number


class ZoomedViews(TwoViewDataset):
    """Two views that each show a part of the image; boxes of which one of the views shows less
    than half are left out."""

    least = 0.3  # share of the area

    def __getitem__(self, key):
        """See `TwoViewDataset.__getitem__`."""
        image, record = self.source.read(key.index)
        boxes = limit_boxes(record.boxes, self.max_proposals)
        rng = random.Random(key.seed)
        parts = [part_of(image, self.least, rng) for _ in range(2)]
        kept = torch.stack([visible(boxes, part) >= 0.5 for part in parts]).all(dim=0)
        if not kept.any():
            parts, kept = [(0, 0, *image.size)] * 2, torch.ones(len(boxes), dtype=torch.bool)
        views = []
        for part in parts:
            shift, size = torch.tensor([*part[:2]] * 2), (part[2] - part[0], part[3] - part[1])
            inside = (boxes[kept] - shift).clamp(min=0).minimum(torch.tensor([*size] * 2))
            views.append(self.augment(image.crop(part), inside, rng))
        return tuple({"image": t, "boxes": b, "name": record.file_name} for t, b in views)


def part_of(image: Image.Image, least: float, rng: random.Random) -> tuple[int, int, int, int]:
    """A random part (x1, y1, x2, y2) with the image's aspect ratio."""
    side = math.sqrt(rng.uniform(least, 1.0))
    width, height = round(image.width * side), round(image.height * side)
    x, y = rng.randint(0, image.width - width), rng.randint(0, image.height - height)
    return x, y, x + width, y + height


def visible(boxes: Tensor, part: tuple[int, int, int, int]) -> Tensor:
    """Which share of each box (M, 4) is inside the part: (M,)."""
    corner, end = torch.tensor(part[:2]), torch.tensor(part[2:])
    sides = boxes[:, 2:].minimum(end) - boxes[:, :2].maximum(corner)
    return sides.clamp(min=0).prod(dim=1) / (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)


class ManyOperations(Augment):
    """Several photometric operations in turn."""

    number = 2

    def recoloured(self, image, rng):
        """See `Augment.recoloured`."""
        for _ in range(self.number):
            operation = rng.choice(list(transforms.PHOTOMETRIC))
            image = transforms.photometric(image, operation, rng.random())
        return image


def use(variant: Variant) -> None:
    """Put a variant into `pretrain`."""
    VariantBoxDomain.variant = variant
    pretrain.BoxDomain = VariantBoxDomain
    build = pretrain.build_two_views

    def build_two_views(*args, **kwargs):
        dataset = build(*args, **kwargs)
        if variant.zoom is not None:
            ZoomedViews.least = variant.zoom
            dataset.__class__ = ZoomedViews
        if variant.operations != 1:
            ManyOperations.number = variant.operations
            old = dataset.augment
            dataset.augment = ManyOperations(
                old.short_sides, old.max_side, old.flip, old.photometric
            )
        return dataset

    pretrain.build_two_views = build_two_views


def main() -> None:
    """Take `--variant` from the command line; the rest is `pretrain.py`'s."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--variant", required=True)
    options, sys.argv[1:] = parser.parse_known_args()
    use(from_mapping(Variant, yaml.safe_load(options.variant)))
    pretrain.main()


if __name__ == "__main__":
    main()
