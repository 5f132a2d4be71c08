"""The size of the features in front of the projector: watched, and taken out in the end."""

import copy

import pytest
import torch
from torch import nn

from aligndet.adapters import ADAPTERS, adapter_class
from aligndet.feature_scale import RATE, FeatureScale
from models import build_detector
from tests.small_detectors import model_config

FREE = {"fcos": None, "retinanet": "head.cls_tower.", "faster_rcnn": "roi_head.fcs."}


def adapter(name):
    torch.manual_seed(0)
    detector = build_detector(model_config(name), num_classes=1)
    return adapter_class(name)(detector, width=16)


def test_growth_by_hand():
    scale = FeatureScale()
    assert scale.growth() == 1
    scale.observe([torch.full((2, 3), 2.0), torch.full((6,), -2.0)])
    assert scale.growth() == 1
    scale.observe([torch.full((4,), 6.0)])
    assert scale.growth() == pytest.approx(1 - RATE + 3 * RATE)
    scale.observe([torch.zeros(0, 5)])
    assert scale.growth() == pytest.approx(1 + 2 * RATE)


def test_without_features_in_the_first_step_the_next_one_is_the_start():
    scale = FeatureScale()
    scale.observe([torch.zeros(0, 5)])
    assert scale.growth() == 1
    scale.observe([torch.full((4,), 6.0)])
    assert scale.at_start == 6


def test_a_checkpoint_keeps_it():
    scale, other = FeatureScale(), FeatureScale()
    scale.observe([torch.ones(3)])
    scale.observe([torch.full((3,), 9.0)])
    other.load_state_dict(scale.state_dict())
    assert other.growth() == scale.growth() > 1


@pytest.mark.parametrize("name", ADAPTERS)
def test_the_free_layer_is_the_last_one_without_a_norm(name):
    online = adapter(name)
    if FREE[name] is None:
        assert online.free_layer is None
        return
    assert online.free_layer.startswith(FREE[name])
    stack = online.detector.get_submodule(online.feature_stack)
    index = int(online.free_layer.split(".")[-2])
    assert isinstance(stack[index], (nn.Conv2d, nn.Linear))
    assert [type(layer) for layer in stack[index + 1 :]] == [nn.ReLU]


def test_a_normalised_tower_is_left_as_it_is():
    torch.manual_seed(0)
    config = model_config("retinanet")
    config = type(config)(**{**vars(config), "options": {**config.options, "tower_norm": "gn"}})
    online = adapter_class("retinanet")(build_detector(config, num_classes=1), width=16)
    assert online.free_layer is None
    online.scale.observe([torch.ones(3)])
    online.scale.observe([torch.full((3,), 99.0)])
    for key, value in online.weights().items():
        assert torch.equal(value, online.detector.state_dict()[key]), key


def test_faster_rcnn_has_smaller_features_and_the_same_boxes():
    online = adapter("faster_rcnn")
    online.scale.observe([torch.ones(3)])
    online.scale.now.fill_(8.0)
    scaled = copy.deepcopy(online.detector)
    scaled.load_state_dict(online.weights())
    head, scaled_head = online.detector.roi_head, scaled.roi_head
    nn.init.normal_(head.box_regression.bias)
    scaled_head.box_regression.bias.data.copy_(head.box_regression.bias)
    x = torch.randn(5, head.fcs[0].in_features)
    torch.testing.assert_close(scaled_head.fcs(x) * 8, head.fcs(x))
    torch.testing.assert_close(
        scaled_head.deltas_from(scaled_head.fcs(x)), head.deltas_from(head.fcs(x))
    )


def test_retinanet_has_smaller_class_features_and_the_same_boxes():
    online = adapter("retinanet")
    online.scale.observe([torch.ones(3)])
    online.scale.now.fill_(8.0)
    scaled = copy.deepcopy(online.detector)
    scaled.load_state_dict(online.weights())
    maps = [torch.randn(1, online.detector.config.channels, 4, 6)]
    (mine,), (my_boxes,) = online.detector.head.towers(maps)
    (theirs,), (their_boxes,) = scaled.head.towers(maps)
    torch.testing.assert_close(theirs * 8, mine)
    torch.testing.assert_close(their_boxes, my_boxes)
