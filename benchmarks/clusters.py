"""How pure are clusters of boxes? Labelled boxes are put into clusters without their labels.

    python benchmarks/clusters.py --images DIR --annotations FILE.json --backbone mobilenet_v2 \\
        --weights FILE --short-side 320

For each choice of levels it prints a row of a table in Markdown: purity (the share of boxes that
have the most frequent label of their cluster) and normalised mutual information (divided by the
mean of the two entropies), mean over three seeds, and how often the nearest box of another image
has the same label. The same for a backbone with random weights, and for random clusters.

Legend: B boxes, K clusters, C classes.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from aligndet.box_features import FeatureSettings, box_features
from aligndet.clusters import ClusterSettings, fit
from data.coco import CocoDataset
from models.backbone import build_backbone
from models.backbone_base import StagedBackbone
from models.backbone_weights import load_backbone_weights

CHOICES = (("c3",), ("c4",), ("c5",), ("c4", "c5"))
SEEDS = 3
CPU = torch.device("cpu")


def purity(table: Tensor) -> float:
    """Of counts (K, C)."""
    return (table.max(dim=1).values.sum() / table.sum()).item()


def mutual_information(table: Tensor) -> float:
    """Normalised, in 0..1, of counts (K, C)."""
    joint = table / table.sum()
    rows, columns = joint.sum(dim=1), joint.sum(dim=0)

    def entropy(p: Tensor) -> Tensor:
        return -torch.xlogy(p, p).sum()

    shared = entropy(rows) + entropy(columns) - entropy(joint)
    return (2 * shared / (entropy(rows) + entropy(columns))).item()


def scores(found: Tensor, labels: Tensor, clusters: int) -> tuple[float, float]:
    """Purity and NMI of clusters (B,) with classes (B,)."""
    classes = int(labels.max()) + 1
    counts = torch.bincount(found * classes + labels, minlength=clusters * classes)
    table = counts.view(clusters, classes).double()
    return purity(table), mutual_information(table)


def nearest_agree(values: Tensor, labels: Tensor, images: Tensor) -> float:
    """How often the most similar box of another image has the same label."""
    unit = F.normalize(values.float(), dim=1)
    similarity = unit @ unit.T
    similarity[images[:, None] == images] = -2.0
    return (labels[similarity.argmax(dim=1)] == labels).double().mean().item()


def mean_scores(runs: list[tuple[float, float]]) -> str:
    """Cells of the table."""
    return ", ".join(f"{sum(column) / len(runs):.3f}" for column in zip(*runs, strict=True))


@dataclass(frozen=True)
class Labelled:
    """Boxes whose classes are known."""

    source: CocoDataset
    labels: Tensor  # (B,)
    images: Tensor  # (B,)

    @classmethod
    def read(cls, images: str, annotations: str) -> Labelled:
        """From a COCO JSON."""
        source = CocoDataset(images, annotations, bad_boxes="drop")
        counts = torch.from_numpy(source.records.box_counts())
        places = torch.arange(len(source)).repeat_interleave(counts)
        return cls(source, torch.from_numpy(source.records.labels()), places)


def print_row(
    name: str, backbone: StagedBackbone, features: FeatureSettings, data: Labelled, many: list[int]
) -> None:
    """One choice of levels; `many` are numbers of clusters."""
    parts = box_features(backbone, data.source, range(len(data.source)), features, 8, 0, CPU)
    sample = sorted(parts, key=lambda part: part.image)
    values, cells = torch.cat([part.values for part in sample]), []
    for clusters in many:
        settings = [ClusterSettings(clusters, seed=s, features=features) for s in range(SEEDS)]
        found = [fit(sample, of_seed, CPU)(values) for of_seed in settings]
        cells.append(mean_scores([scores(f, data.labels, clusters) for f in found]))
    cells.append(f"{nearest_agree(values, data.labels, data.images):.3f}")
    print(f"| {name} | {' | '.join(cells)} |", flush=True)


def print_random(data: Labelled, many: list[int]) -> None:
    """Clusters that are drawn."""
    generator, cells = torch.Generator().manual_seed(0), []
    for clusters in many:
        drawn = [
            torch.randint(clusters, data.labels.shape, generator=generator) for _ in range(SEEDS)
        ]
        cells.append(mean_scores([scores(found, data.labels, clusters) for found in drawn]))
    print(f"| random clusters | {' | '.join(cells)} | |")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Purity of clusters of labelled boxes.")
    parser.add_argument("--images", required=True)
    parser.add_argument("--annotations", required=True)
    parser.add_argument("--backbone", required=True)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--short-side", type=int, default=320)
    parser.add_argument("--clusters", type=int, nargs="+", default=[20, 64, 256])
    args = parser.parse_args()
    data = Labelled.read(args.images, args.annotations)
    print(f"{len(data.labels):,} boxes, {len(data.source):,} images")
    for weights in (args.weights, None):
        torch.manual_seed(0)
        backbone = build_backbone(args.backbone)
        if weights is not None:
            load_backbone_weights(backbone, weights)
        for levels in CHOICES:
            features = FeatureSettings(levels, args.short_side, 2 * args.short_side)
            name = " and ".join(map(str.upper, levels)) + ("" if weights else ", random weights")
            print_row(name, backbone, features, data, args.clusters)
    print_random(data, args.clusters)


if __name__ == "__main__":
    main()
