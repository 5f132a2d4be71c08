"""Pixels to what a network takes, on its device.

Images travel as bytes, a quarter of what floats take, and become floats where they are used.

Legend: N images of H x W pixels, S the sides of square ones.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

# ImageNet statistics of RGB in 0..1: what torchvision's backbones were trained with.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def normalise_batch(batch: Any) -> Any:
    """A batch of `data.views` or `data.image_views` with its images normalised; the rest, and
    batches of another kind, stay as they are."""
    if isinstance(batch, (list, tuple)):  # of two views
        return type(batch)(normalise_batch(view) for view in batch)
    if not isinstance(batch, dict):
        return batch
    if "images" in batch:
        return {**batch, "images": normalise(batch["images"], batch["image_sizes"])}
    if "views" in batch:
        return {**batch, "views": [normalise(view) for view in batch["views"]]}
    return batch


def normalise(images: Tensor, image_sizes: Tensor | None = None) -> Tensor:
    """(value / 255 - mean) / std in float32, and 0, which is the mean colour, in the padding.

    Args:
        images: (N, 3, H, W) uint8, RGB. Floats count as normalised and are returned as they are.
        image_sizes: (N, 2) (h, w) without the padding; on a GPU they would be waited for. None:
            nothing is padded.

    Returns:
        (N, 3, H, W) on the same device, in memory in the same order as `images`.
    """
    if images.is_floating_point():
        return images
    full, mean, std = _constants(images.device)
    result = images.float().div_(full).sub_(mean).div_(std)
    if image_sizes is not None:
        for image, (height, width) in zip(result, image_sizes.tolist(), strict=True):
            image[:, height:] = 0
            image[:, :, width:] = 0
    return result


@cache
def _constants(device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """255, mean and standard deviation, each (3, 1, 1). All are tensors on the device, as CUDA
    divides by a Python number less exactly, by a multiplication."""
    values = torch.tensor([(255.0,) * 3, MEAN, STD], dtype=torch.float32).view(3, 3, 1, 1)
    return values.to(device).unbind()
