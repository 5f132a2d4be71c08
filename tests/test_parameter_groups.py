"""Weight decay and learning rate of each parameter: by name, by hand for a Swin, and for all."""

from __future__ import annotations

import pytest
from torch import nn

from aligndet.optim import OptimConfig, build_optimizer
from aligndet.parameter_groups import layers
from models.backbone import BACKBONES, build_backbone
from models.detector import DETECTORS, build_detector
from tests.helpers.small_detectors import model_config


def by_name(model, **config):
    """(weight decay, factor) of each trained parameter."""
    optimizer = build_optimizer(model, OptimConfig(weight_decay=0.5, **config))
    names = {parameter: name for name, parameter in model.named_parameters()}
    found = [
        (names[parameter], (group["weight_decay"], group["lr_scale"]))
        for group in optimizer.param_groups
        for parameter in group["params"]
    ]
    assert len(found) == len(dict(found))
    return dict(found)


@pytest.mark.parametrize("name", BACKBONES)
def test_every_parameter_of_a_backbone_has_one_depth(name):
    backbone = build_backbone(name, frozen_stages=0)
    found = [p for layer in layers(backbone) for module in layer for p in module.parameters()]
    assert len(found) == len(set(found)) == len(list(backbone.parameters()))


def test_depths_of_a_resnet():
    """The stem, and 2 blocks in each of 4 stages."""
    assert len(layers(build_backbone("resnet18"))) == 1 + 4 * 2


def test_layer_decay_of_a_swin_by_hand():
    """Patches, 2 blocks, merging, 2, merging, 6, merging, 2: 16 depths."""
    model = nn.ModuleDict(
        {"backbone": build_backbone("swin_t", frozen_stages=0), "head": nn.Linear(2, 2)}
    )
    found = by_name(model, layer_decay=0.9, backbone_lr_scale=0.5)
    factors = {name: factor for name, (_, factor) in found.items()}
    assert factors["head.weight"] == 1.0
    for name, height in (
        ("norm.weight", 1),
        ("features.7.1.attn.qkv.weight", 1),
        ("features.7.0.attn.qkv.weight", 2),
        ("features.6.reduction.weight", 3),
        ("norm_c4.weight", 4),
        ("features.5.5.norm1.weight", 4),
        ("features.1.0.attn.qkv.bias", 15),
        ("features.0.0.weight", 16),
        ("features.0.2.weight", 16),
    ):
        assert factors[f"backbone.{name}"] == pytest.approx(0.5 * 0.9**height), name


@pytest.mark.parametrize("name", DETECTORS)
def test_norms_biases_and_tables_are_not_decayed(name):
    """In a detector with a Swin: what has one dimension, and the position tables; the queries of
    DETR are decayed, as by its authors."""
    model = build_detector(model_config(name), 3)
    model.swin = build_backbone("swin_t", frozen_stages=0)
    found = by_name(model, decay_norm_and_bias=False)
    for parameter_name, parameter in model.named_parameters():
        if parameter.requires_grad:
            free = parameter.ndim <= 1 or parameter_name.endswith("position_bias_table")
            assert found[parameter_name] == (0.0 if free else 0.5, 1.0), parameter_name
    assert set(by_name(model).values()) == {(0.5, 1.0)}


def test_what_two_modules_share_is_trained_once():
    model = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    model["b"].weight = model["a"].weight
    assert set(by_name(model)) == {"a.weight", "a.bias", "b.bias"}


def test_bad_values():
    for decay in (0.0, 1.1):
        with pytest.raises(ValueError, match="optim.layer_decay is"):
            OptimConfig(layer_decay=decay)
