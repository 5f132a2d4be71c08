"""Masks as COCO files have them: compressed by pycocotools, or a list by a slow loop."""

from __future__ import annotations

import numpy as np
from pycocotools import mask as coco_mask


def compressed(mask):
    """A mask (H, W) as RLE whose counts are text, as in JSON."""
    rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": list(rle["size"]), "counts": rle["counts"].decode()}


def uncompressed(mask):
    """Run lengths column by column, zeros first."""
    counts, value = [0], 0
    for pixel in mask.T.ravel().tolist():
        if pixel != value:
            counts.append(0)
            value = pixel
        counts[-1] += 1
    return {"size": list(mask.shape), "counts": counts}
