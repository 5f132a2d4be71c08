"""What is kept while boxes are put into clusters, so that a killed run goes on from there.

Legend: N images, C channels, D components, K clusters.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from aligndet.kmeans import PCA, Quantiser
from data.atomic_files import open_atomic
from models.checksum import with_checksum
from models.weights_file import read_weights_file

SAVE_EVERY = 60.0  # seconds


@dataclass
class ClusterState:
    """The centres, and the clusters of the boxes so far."""

    path: Path | None  # of the file; None: nothing is kept
    digest: str  # of all that the clusters depend on but the backbone's weights
    weights: str  # a checksum of these
    quantiser: Quantiser | None = None  # on the CPU; None: there are no centres yet
    labels: dict[int, np.ndarray] = field(default_factory=dict)  # of each image done, (M,) int32
    finished: bool = False
    saved: float = field(default_factory=time.monotonic)

    @classmethod
    def read(cls, path: Path | None, digest: str, weights: str | None) -> ClusterState:
        """What the file holds, if it is there, whole, and of the same work, with any weights if
        they are None; else nothing."""
        if path is not None and path.exists():
            try:
                content = read_weights_file(path)
            except ValueError:  # written again, as it costs time and nothing else
                content = None
            if isinstance(content, Mapping) and content.get("digest") == digest:
                theirs = content["weights"]
                if weights in (None, theirs):
                    return cls(path, digest, theirs, *_unpacked(content), content["finished"])
        return cls(path, digest, weights or "")

    def save(self, now: bool = False) -> None:
        """Write the file, if the last time is long enough ago or `now` says so.

        Raises:
            StorageError: it cannot be written.
        """
        if self.path is None or not (now or time.monotonic() - self.saved >= SAVE_EVERY):
            return
        with open_atomic(self.path, binary=True) as file:
            torch.save(with_checksum(self._packed()), file)
        self.saved = time.monotonic()

    def _packed(self) -> dict[str, Any]:
        images = list(self.labels)
        values = [self.labels[image] for image in images]
        return {
            "digest": self.digest,
            "weights": self.weights,
            "finished": self.finished,
            "mean": self.quantiser.pca.mean,
            "components": self.quantiser.pca.components,
            "centres": self.quantiser.centres,
            "images": torch.tensor(images, dtype=torch.int64),
            "counts": torch.tensor([len(v) for v in values], dtype=torch.int64),
            "labels": torch.from_numpy(np.concatenate([np.zeros(0, np.int32), *values])),
        }


def _unpacked(content: Mapping[str, Any]) -> tuple[Quantiser, dict[int, np.ndarray]]:
    parts = content["labels"].split(content["counts"].tolist())
    labels = {
        image: part.numpy() for image, part in zip(content["images"].tolist(), parts, strict=True)
    }
    pca = PCA(content["mean"], content["components"])
    return Quantiser(pca, content["centres"]), labels
