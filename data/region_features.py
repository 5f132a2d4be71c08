"""What selective search compares regions by: colour and texture histograms, size and box.

Source: Uijlings et al., "Selective Search for Object Recognition", IJCV 2013, Section 3.2.

Letters: `H`, `W` image height and width, `R` regions, `C` channels, `F` histogram bins.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data.segmentation import gaussian_blur

COLOUR_BINS = 25  # a channel
TEXTURE_BINS = 10  # a channel and direction


@dataclass(frozen=True)
class Regions:
    """The regions of one image."""

    size: np.ndarray  # (R,) pixels
    box: np.ndarray  # (R, 4) xyxy, right and bottom exclusive
    colour: np.ndarray  # (R, C * 25) float32, sums to 1
    texture: np.ndarray  # (R, C * 8 * 10) float32, sums to 1
    pairs: np.ndarray  # (neighbouring pairs, 2), lower number first


def describe_regions(labels: np.ndarray, colours: np.ndarray, pixels: np.ndarray) -> Regions:
    """Measure every region.

    Args:
        labels: (H, W) region numbers 0..R-1.
        colours: (H, W, C) in 0..255, for the colour histograms.
        pixels: (H, W, C) in 0..255, for the texture.
    """
    size = np.bincount(labels.ravel())
    return Regions(
        size=size,
        box=_boxes(labels, len(size)),
        colour=_histogram(labels, colours * (COLOUR_BINS / 256), COLOUR_BINS, size),
        texture=_texture(labels, pixels, size),
        pairs=_neighbours(labels),
    )


def _boxes(labels: np.ndarray, count: int) -> np.ndarray:
    """(R, 4) xyxy. Of repeated indices in an assignment the last one stays: the extreme pixel."""
    height, width = labels.shape
    box = np.zeros((count, 4), dtype=np.int64)
    y, x = np.repeat(np.arange(height), width), np.repeat(np.arange(width), height)
    by_row, by_column = labels.ravel(), labels.T.ravel()
    box[by_column[::-1], 0] = x[::-1]
    box[by_row[::-1], 1] = y[::-1]
    box[by_column, 2] = x + 1
    box[by_row, 3] = y + 1
    return box


def _neighbours(labels: np.ndarray) -> np.ndarray:
    """Pairs of regions that share a side of a pixel."""
    across = np.stack([labels[:, :-1].ravel(), labels[:, 1:].ravel()], axis=1)
    down = np.stack([labels[:-1].ravel(), labels[1:].ravel()], axis=1)
    pairs = np.concatenate([across, down]).astype(np.int64)
    pairs = np.sort(pairs[pairs[:, 0] != pairs[:, 1]], axis=1)
    count = labels.max() + 1
    codes = np.unique(pairs[:, 0] * count + pairs[:, 1])
    return np.stack([codes // count, codes % count], axis=1)


def _histogram(labels: np.ndarray, levels: np.ndarray, bins: int, size: np.ndarray) -> np.ndarray:
    """(H, W, C) levels in 0..bins to (R, C * bins) histograms that sum to 1."""
    channels = levels.shape[2]
    level = np.clip(levels.astype(np.int32), 0, bins - 1)
    slot = (labels[..., None] * channels + np.arange(channels, dtype=np.int32)) * bins + level
    counts = np.bincount(slot.ravel(), minlength=len(size) * channels * bins)
    return (counts.reshape(len(size), -1) / (channels * size[:, None])).astype(np.float32)


def _texture(labels: np.ndarray, pixels: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Histograms of the slope in 8 directions; Gaussian derivatives with sigma 1."""
    smooth = gaussian_blur(pixels, 1.0)
    along_y, along_x = (_slope(smooth, axis) for axis in (0, 1))
    diagonals = [(along_y + along_x) * 0.5**0.5, (along_y - along_x) * 0.5**0.5]
    slopes = []
    for slope in [along_y, along_x, *diagonals]:  # each is two directions: uphill and downhill
        slopes += [np.maximum(slope, 0), np.maximum(-slope, 0)]
    slopes = np.concatenate(slopes, axis=2)  # (H, W, 8C)
    steepest = np.maximum(slopes.max(axis=(0, 1)), 1e-6)
    return _histogram(labels, slopes * (TEXTURE_BINS / steepest), TEXTURE_BINS, size)


def _slope(image: np.ndarray, axis: int) -> np.ndarray:
    """Central differences; the image is continued flat beyond its border."""
    padding = [(1, 1) if a == axis else (0, 0) for a in range(3)]
    padded = np.pad(image, padding, mode="edge")
    if axis == 0:
        return (padded[2:] - padded[:-2]) / 2
    return (padded[:, 2:] - padded[:, :-2]) / 2


def rgb_to_hsv(pixels: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 RGB to float32 hue, saturation and value, each in 0..255."""
    rgb = pixels.astype(np.float32)
    red, green, blue = np.moveaxis(rgb, 2, 0)
    value = rgb.max(axis=2)
    chroma = value - rgb.min(axis=2)
    divisor = np.where(chroma > 0, chroma, 1)
    hue = np.select(  # in sixths of the colour circle
        [value == red, value == green],
        [(green - blue) / divisor % 6, (blue - red) / divisor + 2],
        (red - green) / divisor + 4,
    )
    saturation = chroma / np.where(value > 0, value, 1)
    return np.stack([hue * (255 / 6), saturation * 255, value], axis=2)


def rgb_to_lab(pixels: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 sRGB to float32 CIE L*a*b* (D65): L* scaled to 0..255, a* and b* + 128."""
    level = np.arange(256) / 255
    linear = np.where(level > 0.04045, ((level + 0.055) / 1.055) ** 2.4, level / 12.92)
    to_xyz = np.array(
        [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    )
    to_xyz /= to_xyz.sum(axis=1, keepdims=True)  # white becomes (1, 1, 1)
    xyz = linear.astype(np.float32)[pixels] @ to_xyz.T.astype(np.float32)
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    x, y, z = np.moveaxis(f, 2, 0)
    lab = [(116 * y - 16) * 2.55, 500 * (x - y) + 128, 200 * (y - z) + 128]
    return np.stack(lab, axis=2)


def rgb_as_float(pixels: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 RGB to float32, values kept."""
    return pixels.astype(np.float32)


COLOUR_SPACES = {"rgb": rgb_as_float, "hsv": rgb_to_hsv, "lab": rgb_to_lab}
