"""The records of a dataset: each image with its boxes, made from the arrays of all when asked for.

A list of 100,000 records would hold 200,000 tensors, and to send a tensor to a loader process takes
an open file. Arrays take none, whatever the number of images, and all processes share them.

Legend: N images, M boxes of one image, B boxes of several images.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, overload

import numpy as np
import torch
from torch import Tensor

from data.coco_boxes import Judged, judge_boxes
from data.coco_ids import Id
from data.coco_masks import CocoMasks
from data.packed_coco import Boxes, PackedCoco
from data.texts import Texts


@dataclass(frozen=True)
class Record:
    """One image of a dataset with its boxes."""

    image_id: Id
    file_name: str  # relative to the folder of the images
    height: int
    width: int
    boxes: Tensor  # (M, 4) float32 xyxy pixels, inside the image
    labels: Tensor  # (M,) int64, 0..K-1
    masks: Sequence[bytes] | None = None  # (M,) RLE, see `data.masks`; None: not asked for


class Block(NamedTuple):
    """Some images with all of their boxes."""

    places: range  # of the records
    boxes: Boxes
    judged: Judged
    used: np.ndarray  # (B,) bool, of the boxes those that belong to the records
    counts: np.ndarray  # number of boxes of each record, used or not
    rows: np.ndarray  # (B,) places of the boxes among those of the file

    @property
    def corners(self) -> np.ndarray:
        """The boxes of the records, float32 xyxy."""
        return self.judged.corners[self.used]

    @property
    def labels(self) -> np.ndarray:
        """Their labels, int64."""
        return self.boxes.labels[self.used]

    @property
    def used_counts(self) -> np.ndarray:
        """Number of boxes of each record."""
        ends = np.concatenate([[0], self.used.cumsum()])
        return np.diff(ends[np.concatenate([[0], self.counts.cumsum()])])


class Records(Sequence[Record]):
    """Records in a fixed order.

    Args:
        coco: where the boxes are.
        images: (N,) int64 places in `coco`, ascending: its images that are used.
        file_names: (N,) relative to the folder of the images.
        sizes: (N, 2) int32 (height, width) of the images, all known.
        keep_crowd: whether crowd boxes are used like any other.
        masks: of the boxes; None: records have none.
    """

    def __init__(
        self,
        coco: PackedCoco,
        images: np.ndarray,
        file_names: Texts,
        sizes: np.ndarray,
        keep_crowd: bool = False,
        masks: CocoMasks | None = None,
    ) -> None:
        self.coco, self.images, self.keep_crowd, self.masks = coco, images, keep_crowd, masks
        self.file_names, self.sizes = file_names, sizes

    def __len__(self) -> int:
        return len(self.images)

    @overload
    def __getitem__(self, index: int) -> Record: ...

    @overload
    def __getitem__(self, index: slice) -> list[Record]: ...

    def __getitem__(self, index: int | slice) -> Record | list[Record]:
        place = range(len(self))[index]
        return self._record(place) if isinstance(place, int) else list(map(self._record, place))

    def _record(self, place: int) -> Record:
        block = self._block(range(place, place + 1))
        height, width = self.sizes[place].tolist()
        masks = None
        if self.masks is not None:
            masks = tuple(map(self.masks.rle, block.rows[block.used].tolist()))
        return Record(
            self.coco.image_id(int(self.images[place])),
            self.file_names[place],
            height,
            width,
            torch.from_numpy(block.corners),
            torch.from_numpy(block.labels),
            masks,
        )

    def blocks(self) -> Iterator[Block]:
        """All records with their boxes, many at a time; they do not stay in memory."""
        for run in self.coco.blocks():
            first, end = np.searchsorted(self.images, [run.start, run.stop]).tolist()
            if first < end:
                yield self._block(range(first, end))
        self.coco.packed.forget()

    def box_counts(self) -> np.ndarray:
        """Number of boxes of each image, (N,) int64."""
        counts = [block.used_counts for block in self.blocks()]
        return np.concatenate(counts) if counts else np.zeros(0, np.int64)

    def labels(self) -> np.ndarray:
        """The labels of all boxes, (B,) int64."""
        labels = [block.labels for block in self.blocks()]
        return np.concatenate(labels) if labels else np.zeros(0, np.int64)

    def among(self, chosen: np.ndarray) -> Records:
        """Some of the records, by their places, ascending."""
        names = Texts.of(self.file_names[i] for i in chosen.tolist())
        images, sizes = self.images[chosen], self.sizes[chosen]
        return Records(self.coco, images, names, sizes, self.keep_crowd, self.masks)

    def _block(self, places: range) -> Block:
        mine = slice(places.start, places.stop)
        images = self.images[mine]
        starts, ends = self.coco.starts[images], self.coco.starts[images + 1]
        counts = ends - starts
        boxes = self.coco.boxes(slice(int(starts[0]), int(ends[-1])))
        rows = np.arange(starts[0], ends[-1])
        if counts.sum() < len(boxes.xywh):  # images between them are not used
            rows = np.concatenate([np.arange(a, b) for a, b in zip(starts, ends, strict=True)])
            boxes = Boxes(*(column[rows - starts[0]] for column in boxes))
        judged = judge_boxes(boxes.xywh, self.sizes[mine].repeat(counts, axis=0))
        used = judged.usable if self.keep_crowd else judged.usable & ~boxes.crowd
        return Block(places, boxes, judged, used, counts, rows)
