"""Our classifier against torchvision's with the same weights."""

from __future__ import annotations

import pytest
import torch
import torchvision

from models.backbone import build_backbone
from models.classifier import Classifier
from tests.helpers.random_norms import randomise_norm


@pytest.mark.usefixtures("double_precision")
@pytest.mark.parametrize("name", ["resnet18", "resnet50", "mobilenet_v2"])
def test_logits_equal_torchvisions(name):
    torch.manual_seed(0)
    ours = Classifier(build_backbone(name), num_classes=7).eval()
    for module in ours.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            randomise_norm(module)
    theirs = getattr(torchvision.models, name)(num_classes=7).eval()
    theirs.load_state_dict(ours.torchvision_state_dict())  # strict: every name
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        logits = ours(images)
        assert logits.shape == (2, 7)
        assert logits.std() > 1e-3
        torch.testing.assert_close(logits, theirs(images), rtol=1e-9, atol=1e-9)
