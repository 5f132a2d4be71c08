"""How well do a backbone's features tell classes apart? Two measures that do not change the
backbone:

- k-NN: the most similar training images vote for the class of an image, each with the weight
  exp(cosine / T) (Wu et al., "Unsupervised feature learning via non-parametric instance
  discrimination", CVPR 2018, section 3.4). Nothing is trained.
- linear probe: logistic regression on standardised features.

`python -m aligndet.probe --weights FILE --backbone resnet50 --train DIR --val DIR`; both folders
have one subfolder per class.

Legend: I training images, J validation images, C channels, K classes, k neighbours.
"""

from __future__ import annotations

import argparse
import itertools
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from aligndet import cli, dist
from aligndet.amp import autocast
from data.crops import CentreCrop
from data.errors import DataError
from data.image_folder import ImageFiles, images_of_classes
from data.image_views import ImageViews, collate_image_views
from data.images import AS_STORED, ImageReading
from data.json_files import write_json_atomic
from data.loaders import eval_loader, iterate
from data.normalise import normalise
from models.backbone import BACKBONES, build_backbone
from models.backbone_base import StagedBackbone
from models.backbone_weights import load_backbone_weights
from models.classifier import pooled_features

NEIGHBOURS = 20  # k
VOTE_TEMPERATURE = 0.07  # T
PROBE_EPOCHS = 100
PROBE_BATCH = 256
PROBE_LR = 0.1  # for standardised features (He et al., "Masked autoencoders", appendix A.1)


@dataclass(frozen=True)
class Features:
    """A backbone's features of labelled images."""

    values: Tensor  # (I, C) float32
    labels: Tensor  # (I,) int64

    def to(self, device: torch.device) -> Features:
        """The same on another device; both measures run where the features are."""
        return Features(self.values.to(device), self.labels.to(device))


@dataclass(frozen=True)
class ProbeData:
    """Labelled images for both measures."""

    train: ImageFiles
    val: ImageFiles

    @classmethod
    def read(cls, train: str, val: str, reading: ImageReading = AS_STORED) -> ProbeData:
        """List two folders with one subfolder per class; `reading` says how images are read. No
        image is skipped: two measurements would not be of the same images.

        Raises:
            DataError: a folder is unusable, or they differ in their classes.
        """
        reading = replace(reading, on_bad_image="error")
        data = cls(images_of_classes(train, reading), images_of_classes(val, reading))
        if data.train.classes != data.val.classes:
            odd = sorted(set(data.train.classes) ^ set(data.val.classes))[0]
            raise DataError(
                f"{val}: its classes differ from those of {train} ({odd} is in one of them only); "
                "give folders with the same class folders"
            )
        return data


@torch.no_grad()
def extract_features(
    backbone: StagedBackbone,
    images: ImageFiles,
    crop_size: int,
    batch_size: int,
    workers: int,
    device: torch.device,
    amp: str = "none",
) -> Features | None:
    """Pooled features of centre crops, in the order of the files, computed by all ranks together.

    Only rank 0 gets them; those of ImageNet from a ResNet-50 take 10 GB. They travel batch by
    batch, so that no other rank holds more than one. The backbone is left in the mode it was in.
    """
    dataset = ImageViews(images, CentreCrop(crop_size))
    loader = eval_loader(
        dataset,
        dataset.aspect_ratios,
        collate_image_views,
        batch_size,
        workers,
        dist.rank(),
        dist.world_size(),
        pin_memory=device.type == "cuda",
    )
    was_training = backbone.training
    backbone.eval()
    steps = dist.highest_over_ranks(len(loader))  # a rank may have a batch less than another
    bar = tqdm(iterate(loader), "features", len(loader), leave=False, disable=not dist.is_main())
    table: Tensor | None = None  # (I, C) on rank 0
    for batch in itertools.chain(bar, itertools.repeat(None, steps - len(loader))):
        found = None if batch is None else _features_of(backbone, batch, device, amp)
        places, rows = _gather_on_main(found, batch_size)
        if dist.is_main():
            if table is None:
                table = rows.new_empty(len(images.files), rows.shape[1])
            table[places] = rows
    backbone.train(was_training)
    return None if table is None else Features(table, torch.tensor(images.labels))


def _features_of(
    backbone: StagedBackbone, batch: dict[str, Any], device: torch.device, amp: str
) -> tuple[Tensor, Tensor]:
    """Places (B,) in the list of images and features (B, C) of a batch, on the CPU."""
    with autocast(device, amp):
        views = normalise(batch["views"][0].to(device, non_blocking=True))
        values = pooled_features(backbone, views)
    return batch["indices"], values.float().cpu()


def _gather_on_main(found: tuple[Tensor, Tensor] | None, batch_size: int) -> tuple[Tensor, Tensor]:
    """Places and features of all ranks' batches; those of a rank other than 0 are its own.

    Every rank sends as many rows: those that a short batch, or none, leaves free have place -1.
    """
    if not dist.in_group() and found is not None:
        return found
    width = dist.highest_over_ranks(0 if found is None else found[1].shape[1])
    places, rows = torch.full((batch_size,), -1), torch.zeros(batch_size, width)
    if found is not None:
        places[: len(found[0])], rows[: len(found[0])] = found
    places, rows = dist.gather_on_main(places), dist.gather_on_main(rows)
    return places[places >= 0], rows[places >= 0]


def probe(
    backbone: StagedBackbone,
    data: ProbeData,
    crop_size: int,
    batch_size: int,
    workers: int,
    device: torch.device,
    amp: str = "none",
    classifier: nn.Linear | None = None,
) -> dict[str, float]:
    """Both measures in percent, `knn` and `linear`; every rank calls it and gets the same result.

    Args:
        backbone: its features are measured.
        data: labelled images.
        crop_size: pixels of the sides of the centre crops.
        batch_size, workers: of each process's loader.
        device: of the backbone.
        amp: precision of its forward pass, see `aligndet.amp`.
        classifier: trained together with the backbone for the same classes; adds `top1`, its
            accuracy.
    """
    settings = (crop_size, batch_size, workers, device, amp)
    train = extract_features(backbone, data.train, *settings)
    val = extract_features(backbone, data.val, *settings)
    scores = None
    if train is not None and val is not None:  # on rank 0
        train, val = train.to(device), val.to(device)
        scores = {"knn": knn_accuracy(train, val), "linear": linear_accuracy(train, val)}
        if classifier is not None:
            with torch.no_grad():
                scores["top1"] = percent_right(classifier(val.values), val.labels)
    return dist.broadcast_object(scores)


def percent_right(logits: Tensor, labels: Tensor) -> float:
    """Percent of the rows of `logits` (J, K) that are largest at their label (J,)."""
    return 100.0 * (logits.argmax(dim=1) == labels).float().mean().item()


def knn_accuracy(train: Features, val: Features, k: int = NEIGHBOURS) -> float:
    """Percent of the validation images whose class the k nearest training images vote for.

    Args:
        train: its images vote; k is at most their number.
        val: its images are classified.
        k: neighbours, by cosine.
    """
    bank, k = F.normalize(train.values, dim=1), min(k, len(train.labels))
    num_classes = int(train.labels.max()) + 1
    votes = bank.new_zeros(len(val.labels), num_classes)  # (J, K)
    # 256 at a time: 1.3 GB of similarities for the images of ImageNet.
    for values, mine in zip(val.values.split(256), votes.split(256), strict=True):
        similarity, nearest = (F.normalize(values, dim=1) @ bank.T).topk(k, dim=1)  # (256, k)
        mine.scatter_add_(1, train.labels[nearest], (similarity / VOTE_TEMPERATURE).exp())
    return percent_right(votes, val.labels)


def linear_accuracy(train: Features, val: Features, epochs: int = PROBE_EPOCHS) -> float:
    """Percent of the validation images that a linear layer on frozen features gets right.

    It is trained by SGD with a cosine schedule; the same features always give the same result.

    Args:
        train: what it learns from.
        val: what it is scored on.
        epochs: passes over `train`.
    """
    mean, std = train.values.mean(dim=0), train.values.std(dim=0).clamp_min(1e-6)
    num_classes = int(train.labels.max()) + 1
    layer = nn.Linear(len(mean), num_classes, device=mean.device)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    steps = epochs * -(-len(train.values) // PROBE_BATCH)
    optimizer = torch.optim.SGD(layer.parameters(), PROBE_LR, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(0)
    with torch.enable_grad():
        for _ in tqdm(range(epochs), "linear probe", leave=False, disable=not dist.is_main()):
            order = torch.randperm(len(train.values), generator=generator).to(mean.device)
            for batch in order.split(PROBE_BATCH):
                # Not of all at once: they would take as much memory again.
                inputs = (train.values[batch] - mean) / std
                loss = F.cross_entropy(layer(inputs), train.labels[batch])
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                schedule.step()
    with torch.no_grad():
        return percent_right(layer((val.values - mean) / std), val.labels)


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(description="k-NN and linear-probe accuracy of a backbone.")
    parser.add_argument("--backbone", required=True, choices=sorted(BACKBONES))
    parser.add_argument("--weights", metavar="FILE", help="of any known layout; random without it")
    parser.add_argument("--train", required=True, metavar="DIR", help="one subfolder per class")
    parser.add_argument("--val", required=True, metavar="DIR", help="one subfolder per class")
    parser.add_argument("--size", type=int, default=224, help="pixels of the crops (224)")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--output", metavar="FILE", help="also write the figures as JSON")
    args = parser.parse_args()
    for option in ("size", "batch_size"):
        if getattr(args, option) < 1:
            parser.error(f"--{option.replace('_', '-')} must be at least 1")
    if args.workers < 0:
        parser.error("--workers must be at least 0")
    with cli.one_line_errors(ValueError), dist.process_group(args.device) as device:
        data = ProbeData.read(args.train, args.val)
        torch.manual_seed(0)
        backbone = build_backbone(args.backbone)
        if args.weights:
            origin = load_backbone_weights(backbone, args.weights)
            if dist.is_main():
                print(origin.summary())
        scores = probe(backbone.to(device), data, args.size, args.batch_size, args.workers, device)
        if dist.is_main():
            print("  ".join(f"{name} {value:.1f} %" for name, value in scores.items()))
            if args.output:
                write_json_atomic(scores, args.output)


if __name__ == "__main__":
    main()
