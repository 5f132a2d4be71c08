"""A digest of what a dataset holds: names, sizes, boxes, labels and masks, not where it lies."""

from __future__ import annotations

import hashlib

from data.coco import CocoDataset
from data.image_folder import ImageFiles
from data.proposals.searched_images import SearchedImages

Source = CocoDataset | SearchedImages | ImageFiles


def digest_of(source: Source) -> str:
    """32 hexadecimal digits, the same for the same images, boxes and masks in the same order.

    The pixels are not read. Of images whose boxes are still to be found, the names count.
    """
    result = hashlib.blake2b(digest_size=16)
    if not isinstance(source, CocoDataset):
        labels = source.labels if isinstance(source, ImageFiles) else ()
        result.update(repr((tuple(source.files), tuple(labels))).encode())
        return result.hexdigest()
    result.update(repr(source.categories).encode())
    records = source.records
    names = iter(records.file_names)
    lengths, letters = (hashlib.blake2b(digest_size=16) for _ in range(2))  # of masks
    for block in records.blocks():
        corners, labels = block.corners, block.labels
        ends = block.used_counts.cumsum().tolist()
        sizes = records.sizes[block.places.start : block.places.stop].tolist()
        for start, end, size in zip([0, *ends], ends, sizes, strict=False):
            result.update(repr((next(names), *size)).encode())
            result.update(corners[start:end].tobytes())
            result.update(labels[start:end].tobytes())
        if records.masks is not None:
            rows = block.rows[block.used]
            lengths.update(records.masks.lengths(rows).tobytes())
            for part in records.masks.joined(rows):
                letters.update(part)
    if records.masks is not None:
        result.update(lengths.digest() + letters.digest())
    return result.hexdigest()
