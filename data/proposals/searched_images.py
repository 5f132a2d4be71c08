"""A folder of images whose boxes are found when an image is first read."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from data.coco import Record
from data.errors import DataError
from data.image_check import PATIENCE, check_images
from data.images import BadImage, decode_image, read_bytes
from data.processes import is_quiet
from data.proposals.cache import ProposalCache
from data.texts import Texts
from data.walk import walk_images


class SearchedImages:
    """All images of a folder with their proposals, without a file that lists them.

    It replaces a `CocoDataset` of a file from `python -m data.proposals`: it gives the same images
    in the same order with the same boxes.

    Args:
        images: folder of the images; those in its subfolders count too.
        cache: finds the boxes and keeps them; its `reading` says how the images are read.

    Raises:
        DataError: the folder does not exist or holds no image, an image is truncated or
            unreadable, or the cache cannot be written and lacks the boxes of an image.
    """

    clusters: int | None = None  # see `data.views.BoxSource`

    def __init__(self, images: str | Path, cache: ProposalCache) -> None:
        self.images, self.cache = Path(images), cache
        found = walk_images(images)
        self.files = Texts.of(found.files)
        checked = check_images(images, self.files, cache.reading)
        self.sizes, self.bad = np.array(checked.sizes), checked.bad  # (N, 2) (height, width)
        said = found.sentence()
        self.notes = checked.notes if said is None else (said, *checked.notes)
        if cache.problem is not None:
            self._require_all(cache.problem)

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
        found = self.cache.proposals(content, image)
        labels = torch.zeros(len(found.boxes), dtype=torch.int64)  # the one category, object
        size = (image.height, image.width)
        return image, Record(index + 1, self.files[index], *size, found.boxes, labels, found.masks)

    def path(self, index: int) -> Path:
        """The file of image `index`."""
        return self.images / self.files[index]

    def _require_all(self, problem: str) -> None:
        """A cache that cannot be written must have all boxes; it reads every image file once."""

        def lacks(index: int) -> bool:
            content = read_bytes(self.path(index))
            if self.cache.kept(content, *self.sizes[index].tolist()) is not None:
                return False
            try:
                decode_image(content, self.path(index), self.cache.reading)
            except BadImage:  # it has no boxes; reading it says why
                return False
            return True

        with ThreadPoolExecutor(max_workers=8) as pool:
            found = pool.map(lacks, range(len(self)))
            bar = {"leave": False, "delay": PATIENCE, "disable": is_quiet()}
            missing = [i for i, lost in enumerate(tqdm(found, "boxes", len(self), **bar)) if lost]
        if missing:
            raise DataError(
                f"{self.cache.directory}: cannot be written ({problem}) and lacks the boxes of "
                f"{len(missing):,} of {len(self):,} images, such as "
                f"{self.path(missing[0])}; set data.proposal_cache to a folder that "
                "can be written and has space"
            )

    @property
    def aspect_ratios(self) -> list[float]:
        """Height / width of every image."""
        height, width = self.sizes.T
        return (height / width).tolist()
