"""Samples for the stages: one labelled view for fine-tuning, two views for box-domain pre-training.

A `SampleKey` selects a sample: which image, and the seed of its random stream.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from data.box_labels import BoxLabels
from data.coco import CocoDataset, Record
from data.transforms import Augment

OF_BOXES = ("boxes", "labels", "masks")  # of an image, the last two if they are there


class SampleKey(NamedTuple):
    """Names one sample of one epoch; equal keys give equal samples, in any process."""

    index: int  # of the record in the dataset
    seed: str  # of everything random in the sample


class BoxSource(Protocol):
    """Images with boxes: `CocoDataset` or `SearchedImages` (`data/proposals/`)."""

    @property
    def aspect_ratios(self) -> list[float]:
        """Height / width of every image."""

    @property
    def sizes(self) -> np.ndarray:
        """(N, 2) (height, width) of every image."""

    @property
    def clusters(self) -> int | None:
        """How many clusters the labels of the records are from; None: they mean nothing here."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> tuple[Image.Image, Record]:
        """Decode image `index`; its record holds its boxes."""

    def path(self, index: int) -> Path:
        """The file of image `index`."""


def limit_boxes(boxes: Tensor, limit: int | None) -> Tensor:
    """The first `limit` boxes (proposals are ranked, best first), or all of them."""
    return boxes if limit is None else boxes[:limit]


class DetectionDataset(Dataset[dict[str, Any]]):
    """One augmented view of each image with boxes and labels."""

    def __init__(self, coco: CocoDataset, augment: Augment) -> None:
        self.coco, self.augment = coco, augment

    def __len__(self) -> int:
        return len(self.coco)

    def path(self, index: int) -> Path:
        """The file of image `index`."""
        return self.coco.path(index)

    def __getitem__(self, key: SampleKey) -> dict[str, Any]:
        """`image` (3, H, W) uint8, `boxes` (M, 4) xyxy in its pixels, `labels` (M,),
        `masks` (M, H, W) uint8 if the dataset has them, `image_id`, `name` of the file,
        `original_size` (h, w)."""
        image, record = self.coco.read(key.index)
        view = self.augment.with_masks(image, record.boxes, record.masks, random.Random(key.seed))
        return {
            "image": view.image,
            "boxes": view.boxes,
            **({} if view.masks is None else {"masks": view.masks}),
            "labels": record.labels[view.kept],
            "image_id": record.image_id,
            "name": record.file_name,
            "original_size": (record.height, record.width),
        }


class TwoViewDataset(Dataset[tuple[dict[str, Any], dict[str, Any]]]):
    """Two independent views of each image and its proposals (AlignDet, section 3.3).

    Box k of one view and box k of the other are the same instance: there is no crop or, with
    `ScaleJitter`, a box that leaves one view leaves the other too.

    Args:
        source: the images.
        augment: makes a view.
        max_proposals: how many boxes of each image are used, the best ones; None: all.
        clusters: of these boxes; None: those of the source, if it has any.
    """

    def __init__(
        self,
        source: BoxSource,
        augment: Augment,
        max_proposals: int | None,
        clusters: BoxLabels | None = None,
    ) -> None:
        self.source, self.augment, self.max_proposals = source, augment, max_proposals
        self.clusters = clusters

    @property
    def num_clusters(self) -> int | None:
        """How many clusters `labels` of the views are from; None: the views have no labels."""
        return self.source.clusters if self.clusters is None else self.clusters.count

    def __len__(self) -> int:
        return len(self.source)

    def path(self, index: int) -> Path:
        """The file of image `index`."""
        return self.source.path(index)

    def __getitem__(self, key: SampleKey) -> tuple[dict[str, Any], dict[str, Any]]:
        """Two dicts of `image` (3, H, W) uint8, `boxes` (M, 4), `labels` (M,) int64 if it has
        clusters, and `name` of the file; M is the same in both. If the dataset has masks, the first
        has `masks` (M, H, W) uint8 too: the second view is not learned from."""
        image, record = self.source.read(key.index)
        boxes = limit_boxes(record.boxes, self.max_proposals)
        masks = None if record.masks is None else record.masks[: len(boxes)]
        rng = random.Random(key.seed)
        views = [self.augment.with_masks(image, boxes, m, rng) for m in (masks, None)]
        one, other = (view.kept for view in views)
        paired = [torch.isin(one, other), torch.isin(other, one)]
        labels = self._labels(key.index, record, one[paired[0]])
        return tuple(
            {
                "image": view.image,
                "boxes": _part(view.boxes, in_both),
                **({} if view.masks is None else {"masks": _part(view.masks, in_both)}),
                **labels,
                "name": record.file_name,
            }
            for view, in_both in zip(views, paired, strict=True)
        )

    def _labels(self, index: int, record: Record, kept: Tensor) -> dict[str, Tensor]:
        if self.num_clusters is None:
            return {}
        labels = record.labels if self.clusters is None else self.clusters[index]
        return {"labels": labels[kept]}


def _part(values: Tensor, chosen: Tensor) -> Tensor:
    """The chosen ones; not copied if these are all, as masks are large."""
    return values if chosen.all() else values[chosen]


def pad_images(images: Sequence[Tensor], divisor: int = 32) -> tuple[Tensor, Tensor]:
    """Batch images (3, h, w) of different sizes by padding right and below with zeros.

    Returns:
        images (N, 3, H, W) of the same type, channels-last, with H and W multiples of `divisor`;
        true sizes (N, 2) int64 (h, w).
    """
    sizes = torch.tensor([image.shape[-2:] for image in images])  # (N, 2)
    height, width = ((sizes.amax(dim=0) + divisor - 1) // divisor * divisor).tolist()
    batch = images[0].new_zeros(len(images), height, width, 3).permute(0, 3, 1, 2)
    for padded, image in zip(batch, images, strict=True):
        padded[:, : image.shape[1], : image.shape[2]] = image
    return batch, sizes


def collate_detection(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """`images` (N, 3, H, W) uint8, `image_sizes` (N, 2), `targets`: a list of dicts of `boxes`,
    `labels` and, if there are any, `masks`; `image_ids`, `names`, `original_sizes`."""
    images, sizes = pad_images([sample["image"] for sample in samples])
    return {
        "images": images,
        "image_sizes": sizes,
        "targets": [{key: s[key] for key in OF_BOXES if key in s} for s in samples],
        "image_ids": [sample["image_id"] for sample in samples],
        "names": _names(samples),
        "original_sizes": [sample["original_size"] for sample in samples],
    }


def collate_views(
    samples: list[tuple[dict[str, Any], dict[str, Any]]],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Two dicts of `images` (N, 3, H, W) uint8, `image_sizes` (N, 2), `boxes`: list of (M, 4),
    `names` of the files, `labels`: list of (M,) if there are any, and, in the first, `masks`: list
    of (M, H, W) if there are any."""
    return tuple(_collate_view(list(view)) for view in zip(*samples, strict=True))


def _collate_view(samples: list[dict[str, Any]]) -> dict[str, Any]:
    images, sizes = pad_images([sample["image"] for sample in samples])
    return {
        "images": images,
        "image_sizes": sizes,
        **{key: [s[key] for s in samples] for key in OF_BOXES if key in samples[0]},
        "names": _names(samples),
    }


def _names(samples: list[dict[str, Any]]) -> list[str]:
    """The samples' file names; a dataset that is not ours may have none."""
    return [sample["name"] for sample in samples if "name" in sample]
