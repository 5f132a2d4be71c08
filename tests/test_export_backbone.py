"""Exported backbones in torchvision's models: every key, the same features."""

from __future__ import annotations

from dataclasses import asdict

import pytest
import torch
import torchvision
from torch import nn

from aligndet import checkpoint
from aligndet.box_domain import BoxDomain, BoxDomainConfig
from aligndet.image_domain import ImageDomainConfig, build_image_domain
from aligndet.transfer import backbone_file, detector_file, pretrained_file
from data.coco import Categories
from data.image_folder import ImageFiles
from models import build_detector
from models.detector import ModelConfig
from tests.helpers.backbone_files import assert_torchvisions_features
from tests.helpers.random_norms import randomise_norm
from tests.helpers.small_detectors import model_config

IMAGES = ImageFiles("nowhere", ("a", "b", "c"), ("x", "y", "z"), (0, 1, 2))


def randomise(module):
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            randomise_norm(part)
    return module


def image_stage(method, name):
    model = ModelConfig(backbone=name)
    task = build_image_domain(model, ImageDomainConfig(method=method), 16, IMAGES)
    randomise(task)
    return backbone_file(task.weights(), model, IMAGES.classes), task


@pytest.mark.parametrize("name", ["resnet18", "resnet101", "mobilenet_v2", "swin_t"])
def test_a_classifier_is_torchvisions_whole_model(tmp_path, script, capsys, name):
    content, task = image_stage("supervised", name)
    checkpoint.save(content, tmp_path / "weights.pt")
    files = ("--weights", tmp_path / "weights.pt", "--output", tmp_path / "out" / "torchvision.pth")
    script("aligndet.export_backbone", *files)
    assert "the whole classifier, " in capsys.readouterr().out
    theirs = getattr(torchvision.models, name)(num_classes=3).eval()
    theirs.load_state_dict(torch.load(tmp_path / "out" / "torchvision.pth", weights_only=True))
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)  # see helpers/double_precision.py
    with torch.no_grad():
        logits = task.classifier.double().eval()(images)
        torch.testing.assert_close(theirs.double()(images), logits, rtol=1e-9, atol=1e-9)


def moco(path):
    content, task = image_stage("moco_v2", "resnet18")
    checkpoint.save(content, path)
    return task.backbone


def box_stage(path):
    config = model_config("fcos")
    detector = randomise(build_detector(config, 1))
    task = BoxDomain(detector, "fcos", BoxDomainConfig(embedding_width=8))
    checkpoint.save(pretrained_file(task.weights(), config), path)
    return task.backbone


def fine_tuned(path):
    config = model_config("retinanet")
    detector = randomise(build_detector(config, 2))
    classes = Categories((3, 7), ("red", "blue"))
    checkpoint.save(detector_file(detector, config, classes, (64, 96)), path)
    return detector.backbone


@pytest.mark.parametrize("stage", [moco, box_stage, fine_tuned])
def test_backbones_of_all_stages_lack_the_classifier_only(tmp_path, script, capsys, stage):
    backbone = stage(tmp_path / "weights.pt")
    output = tmp_path / "torchvision.pth"
    script("aligndet.export_backbone", "--weights", tmp_path / "weights.pt", "--output", output)
    assert "without the classification layer, 120 tensors" in capsys.readouterr().out
    theirs = torchvision.models.resnet18(weights=None).eval()
    keys = theirs.load_state_dict(torch.load(output, weights_only=True), strict=False)
    assert keys.missing_keys == ["fc.weight", "fc.bias"]
    assert keys.unexpected_keys == []
    assert_torchvisions_features(backbone, theirs)


def test_wrong_files(tmp_path, error_of):
    command = ("aligndet.export_backbone", "--output", tmp_path / "out.pth", "--weights")
    assert "none.pt: no such file" in error_of(*command, tmp_path / "none.pt")
    state = {"model": {}, "optimizer": {}, "step": 1, "processes": 1}
    torch.save({**state, "config": asdict(ModelConfig())}, tmp_path / "last.pt")
    message = error_of(*command, tmp_path / "last.pt")
    assert (
        "last.pt: is not the result of a run (stage None); give --weights a weights.pt" in message
    )
    assert not (tmp_path / "out.pth").exists()
    moco(tmp_path / "out.pth")
    before = (tmp_path / "out.pth").read_bytes()
    assert "is --weights itself" in error_of(*command, tmp_path / "out.pth")
    assert (tmp_path / "out.pth").read_bytes() == before


def test_weights_that_are_not_of_the_backbone_in_the_config(tmp_path, error_of):
    moco(tmp_path / "weights.pt")
    content = torch.load(tmp_path / "weights.pt", weights_only=True)
    content["config"]["backbone"] = "resnet34"
    del content["checksum"]
    torch.save(content, tmp_path / "odd.pt")
    command = ("aligndet.export_backbone", "--output", tmp_path / "out.pth", "--weights")
    message = error_of(*command, tmp_path / "odd.pt")
    assert "odd.pt: its weights are not those of the resnet34 in its config (layer1.2." in message
    assert not (tmp_path / "out.pth").exists()


def test_a_file_of_ours_lacks_nothing_not_even_a_step_counter(tmp_path, error_of):
    moco(tmp_path / "weights.pt")
    content = torch.load(tmp_path / "weights.pt", weights_only=True)
    del content["model"]["bn1.num_batches_tracked"], content["checksum"]
    torch.save(content, tmp_path / "odd.pt")
    command = ("aligndet.export_backbone", "--output", tmp_path / "out.pth", "--weights")
    message = error_of(*command, tmp_path / "odd.pt")
    assert "(bn1.num_batches_tracked is missing from the file)" in message
