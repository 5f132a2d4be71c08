"""Each project's names: recognised, loaded completely, and giving torchvision's features."""

from __future__ import annotations

import pytest
import torch

from models.backbone import build_backbone
from models.backbone_weights import load_backbone_weights
from tests.helpers.backbone_files import (
    PREFIXED,
    RENAMED,
    assert_torchvisions_features,
    source,
)


def check_import(tmp_path, name, content, layout):
    file = tmp_path / "weights.pth"
    torch.save(content, file)
    backbone = build_backbone(name)
    report = load_backbone_weights(backbone, file)
    file.unlink()  # together, these files take gigabytes
    assert report.layout == layout
    assert set(report.loaded) == set(backbone.state_dict())
    assert report.missing == ()
    assert backbone.origin is report
    return backbone, report


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        *((name, layout) for name in ("resnet18", "mobilenet_v2") for layout in PREFIXED),
        ("resnet50", "plain"),
        ("resnet50", "moco"),
    ],
)
def test_every_prefix(tmp_path, name, layout):
    model = source(name)
    wrap, words = PREFIXED[layout]
    content = wrap(model.state_dict())
    backbone, report = check_import(tmp_path, name, content, words)
    assert_torchvisions_features(backbone, model)
    for key in ("model_ema", "state_dict_ema", "model", "state_dict", "teacher"):
        if key in content:
            content = content[key]
            break
    assert len(report.loaded) + len(report.unused) == len(content)


@pytest.mark.parametrize("layout", RENAMED)
def test_every_other_name_of_mobilenet(tmp_path, layout):
    model = source("mobilenet_v2")
    convert, words = RENAMED[layout]
    backbone, report = check_import(tmp_path, "mobilenet_v2", convert(model), words)
    assert_torchvisions_features(backbone, model)
    assert set(report.unused) <= {"classifier.weight", "classifier.bias", "head.fc.weight"}
