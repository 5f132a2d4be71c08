"""Features of boxes: RoIAlign against cropped means and torchvision; they do not depend on the
batch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torchvision.ops import RoIAlign

from aligndet.box_features import FeatureSettings, box_features, pool_boxes, same_size_batches
from data.coco import CocoDataset
from models.backbone import build_backbone
from tests.helpers.drawn_boxes import save_coco

CPU = torch.device("cpu")
STRIDES = (4, 8, 16, 32)
PICTURES = [
    (96, 64, [(9, 5, 40, 21), (70, 8, 88, 52), (12, 40, 60, 57)]),
    (50, 90, [(3, 4, 20, 30), (24, 10, 45, 22), (8, 44, 30, 84)]),
    (40, 40, []),
    (94, 63, [(10, 10, 60, 50)]),
    (96, 64, [(20, 5, 50, 60)]),
]


@pytest.fixture
def source(tmp_path):
    return CocoDataset(tmp_path, save_coco(tmp_path, PICTURES))


@pytest.fixture(scope="module")
def backbone():
    torch.manual_seed(0)
    return build_backbone("resnet18")


def features_of(backbone, source, batch_size=2, images=None, **options):
    settings = FeatureSettings(("c4", "c5"), 64, 96, **options)
    images = range(len(source)) if images is None else images
    found = box_features(backbone, source, images, settings, batch_size, 0, CPU)
    return {part.image: part.values for part in found}


def maps_of(channels=3):
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(2, channels, 128 // s, 192 // s, generator=generator) for s in STRIDES]


def test_a_map_that_is_linear_has_its_mean_in_the_middle_of_the_box():
    """The mean of a linear map over a box is its value at the centre: at pixel 66, 44 of 192 x 128
    a map of stride 16 has the column 66 / 16 - 0.5 and the row 44 / 16 - 0.5."""
    maps = maps_of(2)
    maps[2][1, 0] = torch.arange(12.0)
    maps[2][1, 1] = torch.arange(8.0)[:, None]
    boxes = [torch.zeros(0, 4), torch.tensor([[32.0, 24, 100, 64]])]
    found = pool_boxes(maps, boxes, STRIDES, ("c4",))
    expected = torch.tensor([[66 / 16 - 0.5, 44 / 16 - 0.5]])
    torch.testing.assert_close(found, F.normalize(expected, dim=1))


def test_pooling_is_the_mean_of_torchvisions_cells():
    maps = maps_of()
    boxes = [torch.tensor([[10.0, 20, 90, 100], [0, 0, 31, 17]]), torch.tensor([[5.0, 5, 180, 60]])]
    parts = []
    for x, stride in zip(maps[2:], STRIDES[2:], strict=True):
        cells = RoIAlign(7, 1 / stride, sampling_ratio=1, aligned=True)(x, boxes)
        parts.append(F.normalize(cells.mean(dim=(2, 3)), dim=1))
    found = pool_boxes(maps, boxes, STRIDES, ("c4", "c5"))
    torch.testing.assert_close(found, torch.cat(parts, dim=1))
    torch.testing.assert_close(found.square().sum(dim=1), torch.full((3,), 2.0))


def test_every_image_once_and_each_box(backbone, source):
    found = features_of(backbone, source)
    assert sorted(found) == [0, 1, 2, 3, 4]
    assert [len(found[image]) for image in range(5)] == [3, 3, 0, 1, 1]
    assert found[0].shape == (3, 256 + 512)
    assert found[0].dtype == torch.float16
    assert [len(v) for v in features_of(backbone, source, max_boxes=2).values()].count(2) == 2
    assert list(features_of(backbone, source, images=[3, 1])) == [1, 3]


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_they_do_not_depend_on_the_batch(backbone, source, batch_size):
    expected = features_of(backbone, source, batch_size=2)
    for image, values in features_of(backbone, source, batch_size=batch_size).items():
        torch.testing.assert_close(values, expected[image], rtol=0, atol=2e-3)  # of float16


def test_batches_hold_images_of_one_padded_size(source):
    settings = FeatureSettings(short_side=64, max_side=96)
    batches = same_size_batches(source, range(5), settings, 2)
    places = [[key.index for key in batch] for batch in batches]
    # 64 x 96 (twice and once again), 54 x 96 upright, 64 x 64; 63 x 94 is 64 x 95 when resized.
    assert places == [[0, 3], [4], [1], [2]]


def test_the_backbone_is_left_as_it_was(source):
    backbone = build_backbone("resnet18", norm="bn", frozen_stages=0).train()
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    features_of(backbone, source, images=[0])
    assert backbone.training
    after = backbone.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())
