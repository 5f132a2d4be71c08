"""Samples for image-domain pre-training: views of whole images."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from data.image_folder import ImageFiles
from data.images import read_image
from data.views import SampleKey, pad_images


class ImageViews(Dataset[dict[str, Any]]):
    """Independently drawn views of each image.

    Args:
        images: the files.
        augment: makes a view (3, S, S) uint8 from an image and a random stream.
        views: how many per image.
        hide: draws which patches of the image are hidden, for methods that hide some.
    """

    def __init__(
        self,
        images: ImageFiles,
        augment: Callable[[Image.Image, random.Random], Tensor],
        views: int = 1,
        hide: Callable[[random.Random], Tensor] | None = None,
    ) -> None:
        self.images, self.augment, self.views, self.hide = images, augment, views, hide

    def __len__(self) -> int:
        return len(self.images)

    def path(self, index: int) -> Path:
        """The file of image `index`."""
        return self.images.root / self.images.files[index]

    @property
    def aspect_ratios(self) -> list[float]:
        """All 1: views are square, so images of any shape go into one batch."""
        return [1.0] * len(self)

    def __getitem__(self, key: SampleKey) -> dict[str, Any]:
        """`views`: a list of (3, S, S) uint8; `label` 0..K-1, -1 without labels; `index` and `name`
        of the file; `hidden`, if something is, a grid of bool."""
        image = read_image(self.path(key.index), self.images.reading)
        rng = random.Random(key.seed)
        label = self.images.labels[key.index] if self.images.labels else -1
        views = [self.augment(image, rng) for _ in range(self.views)]
        name = self.images.files[key.index]
        sample = {"views": views, "label": label, "index": key.index, "name": name}
        return {**sample, "hidden": self.hide(rng)} if self.hide else sample


def collate_image_views(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """`views`: a list of (N, 3, S, S) uint8, one per view; `labels` and `indices` (N,) int64;
    `names` of the files; `hidden` (N, G, G) bool if the samples have it."""
    hidden = [sample["hidden"] for sample in samples if "hidden" in sample]
    views = zip(*(sample["views"] for sample in samples), strict=True)
    return {
        "views": [pad_images(view, divisor=1)[0] for view in views],  # all are of one size
        "labels": torch.tensor([sample["label"] for sample in samples]),
        "indices": torch.tensor([sample["index"] for sample in samples]),
        "names": [sample["name"] for sample in samples],
        **({"hidden": torch.stack(hidden)} if hidden else {}),
    }
