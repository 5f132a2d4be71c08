"""Positives per box, against maps of the networks themselves and boxes worked out by hand."""

from __future__ import annotations

import pytest
import torch

from aligndet.positives import (
    ASSIGNERS,
    UNITS,
    detector_without_weights,
    empty_maps,
    positives_per_box,
)
from models import build_detector
from models.detector import DETECTORS
from models.detr import sides_of
from models.matcher import pad_targets
from tests.helpers.small_detectors import OPTIONS, model_config


@pytest.mark.parametrize("backbone", ["resnet18", "mobilenet_v2"])
@pytest.mark.parametrize("name", sorted(OPTIONS))
def test_maps_have_the_networks_sizes(name, backbone):
    detector = build_detector(model_config(name, backbone=backbone), num_classes=1)
    for height, width in ((64, 96), (33, 10), (96, 320)):
        rows, columns = (-(-side // 32) * 32 for side in (height, width))
        with torch.no_grad():
            maps = detector.pyramid(torch.zeros(1, 3, rows, columns))
        found = empty_maps(detector.strides, height, width)
        assert [x.shape[2:] for x in found] == [x.shape[2:] for x in maps]


@pytest.mark.parametrize("name", sorted(OPTIONS))
def test_positives_are_those_of_training(name):
    """The real detector's assigner on its real maps, counted box by box."""
    config = model_config(name)
    real = build_detector(config, num_classes=1)
    boxes = torch.tensor([[3, 4, 50, 60], [60, 8, 90, 40], [10, 10, 14, 15], [1.0, 1, 3, 3]])
    with torch.no_grad():
        maps = real.pyramid(torch.zeros(1, 3, 64, 96))
    if name == "detr":
        sizes = torch.tensor([[60, 90]])
        output = real.predictions(torch.zeros(1, 3, 64, 96), *sizes.unbind(1)).last()
        targets = pad_targets([{"boxes": boxes, "labels": torch.zeros(4).long()}], sides_of(sizes))
        matched = real.match(output, targets)[0, 0]
    elif name == "fcos":
        matched = real.assign(*real.points_for(maps), [boxes])[0]
    else:
        part = real.rpn if name.endswith("_rcnn") else real
        matched = part.assign(part.anchors_for(maps), [boxes])[0]
    counted = [sum(int(index) == number for index in matched) for number in range(len(boxes))]
    empty = detector_without_weights(config, num_classes=1)
    assert all(parameter.is_meta for parameter in empty.parameters())
    assert positives_per_box(empty, name, 60, 90, boxes).tolist() == counted


def test_fcos_by_hand():
    """Points of stride 8 are at 4, 12, 20, ... px."""
    detector = detector_without_weights(model_config("fcos"), num_classes=1)
    boxes = torch.tensor([
        [0, 0, 16, 16.0],  # four points
        [5, 5, 11, 11],  # lies between points
        [17, 1, 23, 7],  # the point at (20, 4)
    ])  # fmt: skip
    assert positives_per_box(detector, "fcos", 64, 64, boxes).tolist() == [4, 0, 1]
    assert positives_per_box(detector, "fcos", 64, 64, boxes[:0]).tolist() == []


def test_every_detector_has_an_assigner_and_a_unit():
    assert set(ASSIGNERS) == set(UNITS) == set(DETECTORS)
