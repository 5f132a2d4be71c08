"""Pseudo-classes of boxes: k-means over a frozen backbone's features of them.

Boxes without labels get the number of the cluster that their features fall into, and a detector
can be pre-trained to tell these apart as it tells classes apart later.

Centres are found on a sample of the images; then every box goes to the nearest one. So the features
of all boxes, 3 GB for those of COCO even after the reduction, are never in memory at once.

Legend: N images, M boxes of one image, B boxes of the sample, C channels, D components, K clusters.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from aligndet import dist
from aligndet.box_features import LEVELS, BoxFeatures, FeatureSettings, box_features
from aligndet.cluster_state import ClusterState
from aligndet.kmeans import BLOCK, Quantiser, fit_pca, kmeans
from data.box_labels import BoxLabels
from data.digest import digest_of
from data.errors import DataError
from data.processes import is_quiet
from data.views import BoxSource
from models.backbone_base import StagedBackbone
from models.checksum import checksum

VERSION = 1  # of the way in which clusters are found
# Gives the features of the boxes of some images.
Features: TypeAlias = Callable[[list[int]], Iterator[BoxFeatures]]
TOGETHER = 512  # images of the sample that are sorted into batches at a time


@dataclass(frozen=True)
class ClusterSettings:
    """What the clusters depend on, apart from the boxes and the backbone."""

    clusters: int = 256  # K
    components: int = 256  # D of the principal components that are clustered
    sample: int = 200_000  # boxes that the centres are found on, at least, if there are as many
    seed: int = 0  # of the sample and of the start of k-means
    features: FeatureSettings = field(default_factory=FeatureSettings)

    def __post_init__(self) -> None:
        for name in ("clusters", "components", "sample"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if not self.features.levels or not set(self.features.levels) <= set(LEVELS):
            raise ValueError(
                f"levels is {','.join(self.features.levels)!r}; give some of {', '.join(LEVELS)}"
            )


def assign_clusters(
    source: BoxSource,
    backbone: StagedBackbone,
    settings: ClusterSettings,
    device: torch.device,
    *,
    batch_size: int = 8,
    workers: int = 0,
    skip_bad: bool = False,
    kept: Path | None = None,
) -> BoxLabels:
    """The cluster, 0..K-1, of the boxes of each image.

    The same boxes, weights and settings give the same clusters. All ranks call it and get the same;
    rank 0 finds the centres, then they share the images.

    Args:
        source: of images and boxes, such as `TwoViewDataset.source`.
        backbone: on `device`; it does not change.
        settings: what the clusters are to be.
        device: of the backbone.
        batch_size: images at a time; changes only the speed.
        workers: processes that load images; 0 loads in this one.
        skip_bad: images that cannot be used get no clusters, instead of a DataError.
        kept: a file where rank 0 keeps what it has done, every minute and at the end; if it is
            there and of the same work, that is not done again. None: nowhere.

    Raises:
        DataError: an image cannot be used, or there are fewer boxes than clusters.
        StorageError: `kept` cannot be written.
    """
    features = partial(
        box_features,
        backbone,
        source,
        settings=settings.features,
        batch_size=batch_size,
        workers=workers,
        device=device,
        skip_bad=skip_bad,
    )
    mine = kept if dist.is_main() else None
    weights = checksum(backbone.state_dict())
    state = ClusterState.read(mine, boxes_digest(source, settings), weights)
    if state.quantiser is None and dist.is_main():
        sample = collect_sample(features, len(source), settings)
        state.quantiser = fit(sample, settings, device)
        quantiser = state.quantiser.to(device)
        # These need not be computed again.
        state.labels = {p.image: _on_cpu(quantiser(p.values.to(device))) for p in sample}
        state.save(now=True)
    state.quantiser, done = dist.broadcast_object((state.quantiser, set(state.labels)))
    rest = [image for image in range(len(source)) if image not in done]
    assign_rest(state, rest[dist.rank() :: dist.world_size()], features, device)
    for labels in dist.gather_objects(state.labels):
        state.labels.update(labels)
    if not state.finished:
        state.finished = True
        state.save(now=True)
    return _in_order(state, source, settings)


def kept_clusters(kept: Path, source: BoxSource, settings: ClusterSettings) -> BoxLabels | None:
    """What `assign_clusters` has kept, whatever the backbone's weights are now: a run that is
    resumed may have trained them since. All ranks call it.

    Returns:
        None if the file is missing, damaged, or not of these boxes and settings.
    """
    labels = None
    if dist.is_main():
        state = ClusterState.read(kept, boxes_digest(source, settings), weights=None)
        labels = _in_order(state, source, settings) if state.finished else None
    return dist.broadcast_object(labels)


def assign_rest(
    state: ClusterState, images: list[int], features: Features, device: torch.device
) -> None:
    """Put the boxes of some images into the clusters of `state`, and their clusters into it."""
    quantiser = state.quantiser.to(device)
    bar = tqdm(total=len(images), desc="clusters", unit="image", disable=is_quiet() or not images)
    try:
        for part in features(images):
            state.labels[part.image] = _on_cpu(quantiser(part.values))
            state.save()
            bar.update()
    except BaseException:  # a signal, or an image that is to be mended
        state.save(now=True)
        raise
    finally:
        bar.close()


def collect_sample(features: Features, images: int, settings: ClusterSettings) -> list[BoxFeatures]:
    """Features, on the CPU, of the boxes of random images, until there are enough.

    Args:
        features: gives those of some images.
        images: N.
        settings: how many boxes are enough, and the seed.
    """
    order = random.Random(f"sample {settings.seed}").sample(range(images), images)
    sample: list[BoxFeatures] = []
    wanted, found = settings.sample, 0
    with tqdm(total=images, desc="features", unit="image", disable=is_quiet()) as bar:
        for start in range(0, images, TOGETHER):
            if found >= wanted:
                bar.total = start
                break
            for part in features(order[start : start + TOGETHER]):
                sample.append(part._replace(values=part.values.cpu()))
                found += len(part.values)
                bar.update()
    return sample


def fit(
    sample: Sequence[BoxFeatures], settings: ClusterSettings, device: torch.device
) -> Quantiser:
    """Find the components and centres of a sample; the result is on the CPU.

    Raises:
        DataError: there are fewer boxes than clusters.
    """
    values = torch.cat([part.values for part in sample] or [torch.zeros(0, 1)])  # (B, C)
    if len(values) < settings.clusters:
        raise DataError(
            f"{len(values):,} boxes cannot make {settings.clusters:,} clusters; ask for fewer "
            "clusters, or give more images or boxes"
        )
    pca = fit_pca(values, settings.components, device)
    quantiser = Quantiser(pca, pca.mean.new_zeros(0))
    points = [quantiser.reduce(block.to(device)) for block in values.split(BLOCK)]
    found = kmeans(torch.cat(points), settings.clusters, settings.seed)
    return replace(quantiser, centres=found.centres).to(torch.device("cpu"))


def work_digest(source: BoxSource, backbone: StagedBackbone, settings: ClusterSettings) -> str:
    """32 hexadecimal digits of all that the clusters depend on."""
    return _digest(boxes_digest(source, settings), checksum(backbone.state_dict()))


def boxes_digest(source: BoxSource, settings: ClusterSettings) -> str:
    """32 hexadecimal digits of all of that but the backbone."""
    return _digest(VERSION, digest_of(source), asdict(settings))


def _digest(*basis: Any) -> str:
    return hashlib.blake2b(json.dumps(basis).encode(), digest_size=16).hexdigest()


def _in_order(state: ClusterState, source: BoxSource, settings: ClusterSettings) -> BoxLabels:
    """The clusters of all images; those that could not be used have none."""
    return BoxLabels.of((state.labels.get(i, ()) for i in range(len(source))), settings.clusters)


def _on_cpu(labels: Tensor) -> np.ndarray:
    return labels.int().cpu().numpy()
