"""Features of boxes from a frozen backbone: RoIAlign on C4, C5 or both, averaged over each box.

Legend: N images of a batch, M boxes of one image, C channels of all levels together.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.ops import roi_align

from aligndet.amp import autocast
from data.bad_images import LeavingOut, NotingCollate, say_nothing, without_news
from data.loaders import Loader, iterate
from data.normalise import normalise
from data.transforms import Augment, resized_size
from data.views import BoxSource, SampleKey, limit_boxes, pad_images
from models.backbone_base import StagedBackbone

LEVELS = ("c2", "c3", "c4", "c5")  # maps of a backbone, in their order
GRID = 7  # points per side at which a map is read inside of a box
DIVISOR = 32  # images are padded to multiples of it


@dataclass(frozen=True)
class FeatureSettings:
    """How the features of boxes are made."""

    levels: tuple[str, ...] = ("c4", "c5")  # of LEVELS; the features of several are joined
    short_side: int = 800  # of the images, in pixels, as in evaluation
    max_side: int = 1333  # cap of their long side
    max_boxes: int | None = None  # the best boxes of each image; None: all
    amp: str = "none"  # precision of the backbone's forward pass, see `aligndet.amp`


class BoxFeatures(NamedTuple):
    """The features of one image's boxes."""

    image: int  # its place in the source
    values: Tensor  # (M, C) float16; the part of each level has the length 1


class BoxImages(Dataset[dict[str, Any]]):
    """Images with their boxes, only resized."""

    def __init__(self, source: BoxSource, settings: FeatureSettings) -> None:
        self.source, self.settings = source, settings
        self.augment = Augment((settings.short_side,), settings.max_side, flip=0.0)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: SampleKey) -> dict[str, Any]:
        """`index`, `image` (3, H, W) uint8, `boxes` (M, 4) xyxy in its pixels."""
        image, record = self.source.read(key.index)
        boxes = limit_boxes(record.boxes, self.settings.max_boxes)
        tensor, boxes = self.augment(image, boxes, random.Random(key.seed))
        return {"index": key.index, "image": tensor, "boxes": boxes}


@torch.no_grad()
def box_features(
    backbone: StagedBackbone,
    source: BoxSource,
    images: Collection[int],
    settings: FeatureSettings,
    batch_size: int,
    workers: int,
    device: torch.device,
    skip_bad: bool = False,
) -> Iterator[BoxFeatures]:
    """The features of the boxes of some images, image by image, on the device.

    They do not depend on the batch: only images that are padded to the same size are in one, so
    each looks to the backbone as it would by itself.

    Args:
        backbone: on `device`; its mode is changed to eval meanwhile.
        source: of images and boxes.
        images: places in it.
        settings: how the features are made.
        batch_size: images at a time.
        workers: processes that load; 0 loads in this one.
        device: of the backbone.
        skip_bad: leave out images that cannot be used.

    Raises:
        DataError: an image cannot be used.
    """
    batches = same_size_batches(source, images, settings, batch_size)
    dataset, collate = BoxImages(source, settings), collate_boxes
    if skip_bad:
        dataset, collate = LeavingOut(dataset), NotingCollate(collate)
    loader = Loader(dataset, batches, collate, workers, pin_memory=device.type == "cuda")
    was_training = backbone.training
    backbone.eval()
    try:
        for batch in without_news(iterate(loader), say_nothing):
            with autocast(device, settings.amp):
                maps = backbone(normalise(_moved(batch["images"], device), batch["image_sizes"]))
            boxes = [_moved(of_image, device) for of_image in batch["boxes"]]
            # Half precision, in which they are kept: all boxes are treated alike.
            values = pool_boxes(maps, boxes, backbone.strides, settings.levels).half()
            yield from map(BoxFeatures, batch["indices"], values.split([len(b) for b in boxes]))
    finally:
        backbone.train(was_training)


def pool_boxes(
    maps: Sequence[Tensor], boxes: Sequence[Tensor], strides: Sequence[int], levels: Sequence[str]
) -> Tensor:
    """Average of a grid of points inside each box (RoIAlign with a single cell).

    Args:
        maps: C2 to C5, each (N, C_i, H_i, W_i).
        boxes: of each image, (M, 4) xyxy in its pixels.
        strides: of the maps.
        levels: which of the maps.

    Returns:
        (sum of M, C) float32, image by image.
    """
    parts = []
    for place in map(LEVELS.index, levels):
        # Corners in half precision would be off by pixels.
        x, rois = maps[place].float(), [of_image.float() for of_image in boxes]
        cells = roi_align(x, rois, 1, 1 / strides[place], sampling_ratio=GRID, aligned=True)
        parts.append(F.normalize(cells.flatten(1), dim=1))
    return torch.cat(parts, dim=1)


def same_size_batches(
    source: BoxSource, images: Collection[int], settings: FeatureSettings, batch_size: int
) -> list[list[SampleKey]]:
    """Batches of images that are padded to the same size once they are resized."""
    groups: dict[tuple[int, int], list[SampleKey]] = {}
    for index in sorted(images):
        height, width = source.sizes[index].tolist()
        size = resized_size(height, width, settings.short_side, settings.max_side)
        padded = tuple(-(-side // DIVISOR) * DIVISOR for side in size)
        groups.setdefault(padded, []).append(SampleKey(index, f"boxes {index}"))
    return [
        group[start : start + batch_size]
        for group in groups.values()
        for start in range(0, len(group), batch_size)
    ]


def collate_boxes(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """`images` (N, 3, H, W) uint8, `image_sizes` (N, 2), `boxes`: list of (M, 4), `indices`."""
    images, sizes = pad_images([sample["image"] for sample in samples], DIVISOR)
    return {
        "images": images,
        "image_sizes": sizes,
        "boxes": [sample["boxes"] for sample in samples],
        "indices": [sample["index"] for sample in samples],
    }


def _moved(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor.to(device, non_blocking=True)
