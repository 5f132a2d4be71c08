"""A folder of images whose boxes are found when an image is first read."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image

from data.coco import Record
from data.image_check import check_images
from data.images import decode_image, read_bytes
from data.proposals.cache import ProposalCache
from data.walk import walk_images


class SearchedImages:
    """All images of a folder with their proposals, without a file that lists them.

    It replaces a `CocoDataset` of a file from `python -m data.proposals`: it gives the same images
    in the same order with the same boxes.

    Args:
        images: folder of the images; those in its subfolders count too.
        cache: finds the boxes and keeps them; its `reading` says how the images are read.

    Raises:
        DataError: the folder does not exist or holds no image, or an image is truncated or
            unreadable.
    """

    def __init__(self, images: str | Path, cache: ProposalCache) -> None:
        self.images, self.cache = Path(images), cache
        found = walk_images(images)
        self.files = list(found.files)
        checked = check_images(images, self.files, cache.reading)
        self.sizes, self.bad = checked.sizes, checked.bad
        said = found.sentence()
        self.notes = checked.notes if said is None else (said, *checked.notes)

    def __len__(self) -> int:
        return len(self.files)

    def read(self, index: int) -> tuple[Image.Image, Record]:
        """Decode image `index`; its boxes come from the cache or, the first time, the search.

        Raises:
            DataError: the file is unreadable, or the boxes cannot be kept.
        """
        path = self.path(index)
        content = read_bytes(path)
        image = decode_image(content, path, self.cache.reading)
        boxes = self.cache.boxes(content, image)
        labels = torch.zeros(len(boxes), dtype=torch.int64)  # the one category, object
        return image, Record(index + 1, self.files[index], image.height, image.width, boxes, labels)

    def path(self, index: int) -> Path:
        """The file of image `index`."""
        return self.images / self.files[index]

    @property
    def aspect_ratios(self) -> list[float]:
        """Height / width of every image."""
        return [height / width for height, width in self.sizes]
