"""A folder of images whose boxes are found when an image is first read."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image

from data.coco import Record
from data.images import check_images, decode_image, image_sizes, list_images, read_bytes
from data.proposals.cache import ProposalCache


class SearchedImages:
    """All images of a folder with their proposals, without a file that lists them.

    It replaces a `CocoDataset` of a file from `python -m data.proposals`: it gives the same images
    in the same order with the same boxes.

    Args:
        images: folder of the images; those in its subfolders count too.
        cache: finds the boxes and keeps them.

    Raises:
        DataError: the folder does not exist or holds no image, or an image is truncated or
            unreadable.
    """

    def __init__(self, images: str | Path, cache: ProposalCache) -> None:
        self.images, self.cache = Path(images), cache
        self.files = list_images(images)
        check_images(images, self.files)
        self.sizes = image_sizes(images, self.files)

    def __len__(self) -> int:
        return len(self.files)

    def read(self, index: int) -> tuple[Image.Image, Record]:
        """Decode image `index`; its boxes come from the cache or, the first time, the search.

        Raises:
            DataError: the file is unreadable, or the boxes cannot be kept.
        """
        path = self.images / self.files[index]
        content = read_bytes(path)
        image = decode_image(content, path)
        boxes = self.cache.boxes(content, image)
        labels = torch.zeros(len(boxes), dtype=torch.int64)  # the one category, object
        return image, Record(
            index + 1, self.files[index], image.height, image.width, boxes, labels
        )

    @property
    def aspect_ratios(self) -> list[float]:
        """Height / width of every image."""
        return [height / width for height, width in self.sizes]
