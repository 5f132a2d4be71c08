"""Features of a hand-made labelling."""

from __future__ import annotations

import pytest
import torch

from data.selective_search.region_features import describe_regions, texture_levels
from data.selective_search.segmentation import Segmentation

LABELS = torch.tensor(
    [
        [[0, 0, 1, 1], [0, 2, 2, 1], [3, 2, 2, 3]],
        [[4, 4, 5, -1], [4, 5, 5, -1], [-1, -1, -1, -1]],  # an image of 2 x 3 pixels
    ]
)
PAIRS = torch.tensor([[0, 0, 0, 1, 1, 2, 4], [1, 2, 3, 2, 3, 3, 5]])


def hand_made_regions():
    colours = torch.zeros(2, 1, 3, 4)
    colours[LABELS[:, None] == 1] = 255
    colours[0, 0, 0, 0] = 128
    texture = torch.zeros(2, 4, 3, 4, dtype=torch.int64)
    texture[0, 2, 2, 0] = 9  # one of the two pixels of region 3, rising to the third side
    return describe_regions(Segmentation(LABELS, 6, PAIRS), colours, texture)


def test_size_box_image_and_neighbours() -> None:
    regions = hand_made_regions()
    assert regions.size.tolist() == [3, 3, 4, 2, 3, 3]
    assert regions.image.tolist() == [0, 0, 0, 0, 1, 1]
    boxes = [[0, 0, 2, 2], [2, 0, 4, 2], [1, 1, 3, 3], [0, 2, 4, 3], [0, 0, 2, 2], [1, 0, 3, 2]]
    assert regions.box.tolist() == boxes
    assert regions.pairs is PAIRS


def test_histograms_by_hand() -> None:
    regions = hand_made_regions()
    expected = torch.zeros(6, 25)
    expected[[2, 3, 4, 5], 0] = 1
    expected[0, 12], expected[0, 0] = 1 / 3, 2 / 3  # 128 * 25 / 256 = 12.5
    expected[1, 24] = 1
    torch.testing.assert_close(regions.colour, expected, atol=1e-5, rtol=0)
    texture = torch.zeros(6, 4, 10)
    texture[:, :, 0] = 1 / 4
    texture[3, 2, 0] = texture[3, 2, 9] = 1 / 8
    torch.testing.assert_close(regions.texture.view(6, 4, 10), texture, atol=1e-5, rtol=0)


def test_sums_of_histograms_are_exact() -> None:
    regions = hand_made_regions()
    for histogram in (regions.colour, regions.texture):
        assert torch.equal(histogram * 2**16, (histogram * 2**16).round())


@pytest.mark.parametrize(("axis", "rising", "falling"), [(1, 0, 1), (2, 2, 3)])
def test_texture_tells_directions_apart(axis: int, rising: int, falling: int) -> None:
    ramp = torch.arange(20.0) * 10  # 10 levels per pixel: bin 10 * 10 / 50 = 2
    grey = ramp[:, None].expand(20, 20) if axis == 1 else ramp.expand(20, 20)
    image = torch.stack([grey, grey.flip(axis - 1)])[:, None].expand(2, 3, 20, 20)
    levels = texture_levels(image, torch.ones(2, 20, 20, dtype=torch.bool))[..., 3:-3, 3:-3]
    steep = torch.zeros(2, 4, 14, 14, dtype=torch.int64)
    steep[0, rising] = steep[1, falling] = 2
    assert torch.equal(levels, steep)


def test_texture_is_blind_to_padding() -> None:
    image = (torch.arange(12.0).view(1, 1, 3, 4) * 20).expand(1, 3, 3, 4)
    alone = texture_levels(image, torch.ones(1, 3, 4, dtype=torch.bool))
    padded = torch.nn.functional.pad(image, (0, 3, 0, 2), "replicate")
    inside = torch.zeros(1, 5, 7, dtype=torch.bool)
    inside[:, :3, :4] = True
    assert torch.equal(texture_levels(padded, inside)[..., :3, :4], alone)
