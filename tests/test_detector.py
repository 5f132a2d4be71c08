from dataclasses import fields

import pytest
import torch
import torchvision

from models import ModelConfig, build_backbone, build_detector
from models.backbone import BACKBONES
from models.detector import DETECTORS
from models.fcos import FCOS, FCOSConfig
from models.from_mapping import from_mapping


@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_backbone_makes_a_detector(backbone):
    config = ModelConfig(backbone=backbone, options={"channels": 32, "num_convs": 1})
    model = build_detector(config, num_classes=4)
    losses = model(
        torch.randn(1, 3, 64, 96),
        torch.tensor([[60, 90]]),
        [{"boxes": torch.tensor([[5.0, 6, 40, 50]]), "labels": torch.tensor([3])}],
    )
    assert all(v.isfinite() for v in losses.values())
    assert model.backbone.name == backbone
    assert model.head.cls_logits.out_channels == 4


def test_options_reach_the_detector():
    options = {"channels": 64, "box_loss": "iou", "nms_iou": 0.7, "level_scales": False}
    model = build_detector(ModelConfig(backbone="resnet18", options=options), 2)
    assert isinstance(model, FCOS)
    assert model.config == FCOSConfig(channels=64, box_loss="iou", nms_iou=0.7, level_scales=False)


def test_backbone_settings_reach_the_backbone():
    config = ModelConfig(backbone="resnet18", norm="bn", frozen_stages=3)
    backbone = build_detector(config, 2).train().backbone
    assert backbone.layer3.training
    assert not backbone.layer2.training
    assert {n.split(".")[0] for n, p in backbone.named_parameters() if p.requires_grad} == {
        "layer3",
        "layer4",
    }


def test_backbone_weights_are_loaded(tmp_path):
    weights = torchvision.models.resnet18(weights=None).state_dict()
    file = tmp_path / "resnet18.pth"
    torch.save(weights, file)
    config = ModelConfig(backbone="resnet18", backbone_weights=str(file))
    backbone = build_detector(config, 2).backbone
    assert all(torch.equal(v, weights[k]) for k, v in backbone.state_dict().items())
    with pytest.raises(ValueError, match="not the weights of resnet34"):
        build_detector(ModelConfig(backbone="resnet34", backbone_weights=str(file)), 2)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (ModelConfig(detector="fcso"), "model.detector is 'fcso'.*did you mean fcos"),
        (ModelConfig(backbone="vgg16"), "model.backbone is 'vgg16'.*valid: resnet18, .*mobilenet"),
        (ModelConfig(norm="batch"), "model.norm is 'batch'.*frozen_bn, bn"),
        (ModelConfig(frozen_stages=9), "model.frozen_stages is 9"),
        (
            ModelConfig(options={"score_treshold": 0.1}),
            "model.options.score_treshold is unknown; did you mean score_threshold",
        ),
        (ModelConfig(options={"box_loss": "l1"}), "model.options.box_loss is 'l1'.*giou, iou"),
        (ModelConfig(options={"fpn_extra": "p8"}), "'p8'.*p6p7_from_p5"),
    ],
)
def test_bad_settings_name_the_key_and_what_is_valid(config, message):
    with pytest.raises(ValueError, match=message) as caught:
        build_detector(config, 2)
    assert "\n" not in str(caught.value)


def test_every_option_has_a_plain_default():
    for _, config_class in DETECTORS.values():
        defaults = {f.name: f.default for f in fields(config_class)}
        assert all(type(v) in (bool, int, float, str) for v in defaults.values())
        assert from_mapping(config_class, defaults) == config_class()


def test_the_same_seed_builds_the_same_detector():
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        states.append(build_detector(ModelConfig(backbone="resnet18"), 2).state_dict())
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])


def test_build_backbone_is_exported():
    assert build_backbone("resnet18").name == "resnet18"
