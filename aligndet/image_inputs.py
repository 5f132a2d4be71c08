"""What a `Predictor` takes for an image, turned into a Pillow RGB image."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from data.images import AS_STORED, ImageReading, decode_image, read_image
from data.pixel_values import to_rgb

ImageLike: TypeAlias = "str | Path | Image.Image | np.ndarray | Tensor"
KINDS = (
    "give a path, a Pillow image, a uint8 array (H, W, 3) or (H, W), or a tensor (3, H, W) or "
    "(1, H, W), uint8 or floats in 0..1"
)


def as_image(image: ImageLike, reading: ImageReading = AS_STORED) -> Image.Image:
    """An 8-bit RGB image from a path, a Pillow image, an array or a tensor.

    Args:
        image: one of these.
        reading: how a file is read; its range of values also goes for Pillow images of more than
            8 bits.

    Raises:
        ValueError: it is none of these, or cannot be read.
    """
    if isinstance(image, (str, Path)):
        return read_image(image, reading)
    if isinstance(image, Image.Image):
        return _from_pillow(image, reading)
    if isinstance(image, np.ndarray):
        return _from_array(image)
    if isinstance(image, Tensor):
        return _from_tensor(image)
    raise ValueError(f"the image is a {type(image).__name__}; {KINDS}")


def _from_pillow(image: Image.Image, reading: ImageReading) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":  # more than 8 bits: by the rule for files
        file = io.BytesIO()
        image.save(file, "TIFF")
        return decode_image(file.getvalue(), "the image", reading)
    return to_rgb(image)


def _from_array(array: np.ndarray) -> Image.Image:
    shape, kind = array.shape, f"an array of {array.dtype} {array.shape}"
    if array.dtype != np.uint8:
        raise ValueError(f"the image is {kind}; arrays must be uint8 in 0..255")
    if array.ndim == 3 and shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim == 3 and shape[0] in (1, 3) and shape[2] != 3:
        raise ValueError(f"the image is {kind}: channels come last in arrays, first in tensors")
    if array.size == 0 or not (array.ndim == 2 or (array.ndim == 3 and shape[2] == 3)):
        raise ValueError(f"the image is {kind}; {KINDS}")
    return Image.fromarray(np.ascontiguousarray(array)).convert("RGB")


def _from_tensor(tensor: Tensor) -> Image.Image:
    pixels = tensor.detach().cpu()
    kind = f"a tensor of {pixels.dtype} {tuple(pixels.shape)}"
    if pixels.ndim == 4 and len(pixels) == 1:
        raise ValueError(f"the image is {kind}: a batch; give one image, `batch[0]`")
    if pixels.ndim != 3 or pixels.shape[0] not in (1, 3) or not pixels.numel():
        raise ValueError(f"the image is {kind}; {KINDS}")
    if pixels.is_floating_point():
        # NaN is not between, either.
        if not bool(((pixels >= 0) & (pixels <= 1)).all()):
            raise ValueError(
                f"the image is {kind} with values outside 0..1; divide by 255, and do not "
                "normalise: the predictor does"
            )
        pixels = (pixels.float() * 255).round().to(torch.uint8)
    if pixels.dtype != torch.uint8:
        raise ValueError(f"the image is {kind}; {KINDS}")
    return _from_array(pixels.permute(1, 2, 0).numpy())
