"""The growth of the features in front of the projector: measured, then divided out."""

import copy

import pytest
import torch
from torch import nn

from aligndet.adapters import adapter_class
from aligndet.feature_scale import RATE, FeatureScale, unnormalised_layer
from models import build_detector
from tests.helpers.small_detectors import model_config

STACKS = {"fcos": "head.cls_tower", "retinanet": "head.cls_tower", "faster_rcnn": "roi_head.fcs"}


def adapter(name):
    torch.manual_seed(0)
    detector = build_detector(model_config(name), num_classes=1)
    return adapter_class(name)(detector, width=16)


def test_growth_by_hand():
    scale = FeatureScale("layer.0.")
    assert scale.growth() == 1
    scale.observe([torch.full((2, 3), 2.0), torch.full((6,), -2.0)])
    assert scale.growth() == 1
    scale.observe([torch.full((4,), 6.0)])
    assert scale.growth() == pytest.approx(1 - RATE + 3 * RATE)
    scale.observe([torch.zeros(0, 5)])
    assert scale.growth() == pytest.approx(1 + 2 * RATE)


def test_without_features_in_the_first_step_the_next_one_is_the_start():
    scale = FeatureScale("layer.0.")
    scale.observe([torch.zeros(0, 5)])
    assert scale.growth() == 1
    scale.observe([torch.full((4,), 6.0)])
    assert scale.at_start == 6


def test_a_checkpoint_keeps_it():
    scale, other = FeatureScale("layer.0."), FeatureScale("layer.0.")
    scale.observe([torch.ones(3)])
    scale.observe([torch.full((3,), 9.0)])
    other.load_state_dict(scale.state_dict())
    assert other.growth() == scale.growth() > 1


@pytest.mark.parametrize("name", STACKS)
def test_the_unnormalised_layer_is_the_last_one_before_the_relu(name):
    online = adapter(name)
    layer = unnormalised_layer(online.detector, STACKS[name])
    if name == "fcos":
        assert layer is None
        assert online.scale is None
        return
    assert online.scale.layer == layer
    stack = online.detector.get_submodule(STACKS[name])
    index = int(layer.removeprefix(STACKS[name]).strip("."))
    assert isinstance(stack[index], (nn.Conv2d, nn.Linear))
    assert [type(module) for module in stack[index + 1 :]] == [nn.ReLU]


def test_a_normalised_tower_has_no_scale_and_is_left_as_it_is():
    torch.manual_seed(0)
    config = model_config("retinanet")
    config = type(config)(**{**vars(config), "options": {**config.options, "tower_norm": "gn"}})
    online = adapter_class("retinanet")(build_detector(config, num_classes=1), width=16)
    assert online.scale is None
    kept = {k: v for k, v in online.weights().items() if not k.startswith("projector.")}
    for key, value in kept.items():
        assert torch.equal(value, online.detector.state_dict()[key]), key


def grown_and_scaled(name, growth):
    """A detector whose features have grown, and the one that fine-tuning gets."""
    online = adapter(name)
    online.scale.observe([torch.ones(3)])
    online.scale.now.fill_(growth)
    scaled = copy.deepcopy(online.detector)
    weights = {k: v for k, v in online.weights().items() if not k.startswith("projector.")}
    scaled.load_state_dict({**scaled.state_dict(), **weights})
    return online.detector, scaled


def test_faster_rcnn_has_smaller_features_and_the_same_boxes():
    grown, scaled = (d.roi_head for d in grown_and_scaled("faster_rcnn", 8.0))
    x = torch.randn(5, grown.fcs[0].in_features)
    torch.testing.assert_close(scaled.fcs(x) * 8, grown.fcs(x))
    torch.testing.assert_close(scaled.deltas_from(scaled.fcs(x)), grown.deltas_from(grown.fcs(x)))


def test_retinanet_has_smaller_class_features_and_the_same_boxes():
    grown, scaled = (d.head for d in grown_and_scaled("retinanet", 8.0))
    maps = [torch.randn(1, grown.cls_tower[0].in_channels, 4, 6)]
    (features,), (box_features,) = grown.towers(maps)
    (scaled_features,), (scaled_box_features,) = scaled.towers(maps)
    torch.testing.assert_close(scaled_features * 8, features)
    torch.testing.assert_close(scaled_box_features, box_features)
