"""One number per box of a dataset, such as its cluster, in two arrays for all images.

Arrays are sent to loader processes at no cost; a list of 100,000 tensors would take as many open
files.

Legend: N images, M boxes of one image, B boxes of all images.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class BoxLabels:
    """The labels of the boxes of each image."""

    values: np.ndarray  # (B,) int32, 0..count-1, image by image
    starts: np.ndarray  # (N + 1,) int64: image i has the values up to those of i + 1
    count: int  # how many different labels there can be

    @classmethod
    def of(cls, labels: Iterable[Sequence[int] | np.ndarray | Tensor], count: int) -> BoxLabels:
        """From the labels of each image, in the order of the images."""
        parts = [np.asarray(part, np.int32).reshape(-1) for part in labels]
        ends = np.cumsum([0, *map(len, parts)], dtype=np.int64)
        return cls(np.concatenate([np.zeros(0, np.int32), *parts]), ends, count)

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, image: int) -> Tensor:
        """The labels (M,) int64 of an image's boxes."""
        if not 0 <= image < len(self):
            raise IndexError(f"image {image} of {len(self)}")
        part = self.values[self.starts[image] : self.starts[image + 1]]
        return torch.from_numpy(part.astype(np.int64))
