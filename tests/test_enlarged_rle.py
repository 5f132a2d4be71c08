"""Run lengths of enlarged masks against pycocotools on the enlarged pixels."""

from __future__ import annotations

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from data.enlarged_rle import edges, encode_enlarged


def enlarged_slowly(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """By the centre of each pixel of the image."""
    large = np.zeros(size, np.uint8)
    for y in range(size[0]):
        for x in range(size[1]):
            small = [
                int((place + 0.5) * a / b)
                for place, a, b in zip((y, x), mask.shape, size, strict=True)
            ]
            large[y, x] = mask[tuple(small)]
    return large


@pytest.mark.parametrize("size", [(5, 4), (5, 7), (10, 8), (13, 9), (40, 33), (5, 4001)])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_equals_the_encoded_pixels(size: tuple[int, int], share: float) -> None:
    mask = np.random.default_rng(0).random((5, 4)) < share
    large = enlarged_slowly(mask, size)
    expected = coco_mask.encode(np.asfortranarray(large))
    assert encode_enlarged(mask, size) == expected["counts"]


@pytest.mark.parametrize(("small", "large"), [(320, 320), (320, 4032), (213, 481), (1, 9)])
def test_edges_are_those_of_boxes_to_half_a_pixel(small: int, large: int) -> None:
    found = edges(small, large)
    assert found[0] == 0
    assert found[-1] == large
    assert (np.diff(found) >= 1).all()  # nothing is lost
    assert (abs(found - np.arange(small + 1) * large / small) <= 0.5).all()


def test_a_single_pixel_and_the_other_corner() -> None:
    for place in ((0, 0), (2, 3)):
        mask = np.zeros((3, 4), bool)
        mask[place] = True
        counts = encode_enlarged(mask, (6, 8))
        (x, y, w, h) = coco_mask.toBbox({"size": [6, 8], "counts": counts})
        assert (x, y, w, h) == (2 * place[1], 2 * place[0], 2, 2)
