"""The records of a dataset: each image with its boxes, all of them packed in a few arrays.

A list of 100,000 records would hold 200,000 tensors, and to send a tensor to a loader process takes
an open file. Three arrays take none, whatever the number of images.

Legend: N images, M boxes of one image, B boxes of all images.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
import torch
from torch import Tensor

from data.coco_ids import Id


@dataclass(frozen=True)
class Record:
    """One image of a dataset with its boxes."""

    image_id: Id
    file_name: str  # relative to the folder of the images
    height: int
    width: int
    boxes: Tensor  # (M, 4) float32 xyxy pixels, inside the image
    labels: Tensor  # (M,) int64, 0..K-1


class Records(Sequence[Record]):
    """Records in a fixed order; the tensors of a record are views into the arrays of all.

    Args:
        records: what to pack, read once.
    """

    def __init__(self, records: Iterable[Record]) -> None:
        self.image_ids: list[Id] = []
        self.file_names: list[str] = []
        self.sizes: list[tuple[int, int]] = []  # (height, width) of each image
        boxes, labels, ends = [np.zeros((0, 4), np.float32)], [np.zeros(0, np.int64)], [0]
        for record in records:
            self.image_ids.append(record.image_id)
            self.file_names.append(record.file_name)
            self.sizes.append((record.height, record.width))
            boxes.append(record.boxes.numpy())
            labels.append(record.labels.numpy())
            ends.append(ends[-1] + len(record.boxes))
        self.boxes = np.concatenate(boxes)  # (B, 4) float32
        self.labels = np.concatenate(labels)  # (B,) int64
        self._ends = np.array(ends)  # (N + 1,): image i has the boxes from _ends[i] to _ends[i + 1]

    @property
    def box_counts(self) -> np.ndarray:
        """Number of boxes of each image, (N,) int64."""
        return np.diff(self._ends)

    def __len__(self) -> int:
        return len(self.file_names)

    @overload
    def __getitem__(self, index: int) -> Record: ...

    @overload
    def __getitem__(self, index: slice) -> list[Record]: ...

    def __getitem__(self, index: int | slice) -> Record | list[Record]:
        place = range(len(self))[index]
        return self._record(place) if isinstance(place, int) else list(map(self._record, place))

    def _record(self, place: int) -> Record:
        mine = slice(self._ends[place], self._ends[place + 1])
        return Record(
            self.image_ids[place],
            self.file_names[place],
            *self.sizes[place],
            torch.from_numpy(self.boxes[mine]),
            torch.from_numpy(self.labels[mine]),
        )
