import pytest
import torch
import torchvision
from torch import nn

from models.backbone import build_backbone
from models.backbone_weights import load_backbone_weights
from models.mobilenet_v2 import MobileNetV2

LAST_OF_STAGE = (3, 6, 13, 18)  # torchvision's features[i] that end at stride 4, 8, 16, 32


def torchvision_mobilenet() -> nn.Module:
    torch.manual_seed(0)
    model = torchvision.models.mobilenet_v2(weights=None)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
            module.bias.data.normal_(std=0.1)
    return model.eval()


@pytest.mark.usefixtures("double_precision")
def test_weights_load_and_features_are_torchvisions(tmp_path):
    theirs = torchvision_mobilenet()
    file = tmp_path / "mobilenet_v2.pth"
    torch.save(theirs.state_dict(), file)
    ours = build_backbone("mobilenet_v2").eval()
    load_backbone_weights(ours, file)

    images = torch.randn(2, 3, 65, 96)
    expected, x = [], images
    with torch.no_grad():
        for index, layer in enumerate(theirs.features):
            x = layer(x)
            if index in LAST_OF_STAGE:
                expected.append(x)
        features = ours(images)
    assert [f.shape[1] for f in features] == list(ours.channels)
    for stride, feature, reference in zip((4, 8, 16, 32), features, expected, strict=True):
        assert feature.shape[2:] == (-(-65 // stride), 96 // stride)
        torch.testing.assert_close(feature, reference, rtol=1e-9, atol=1e-9)


def test_keys_are_torchvisions():
    theirs = [k for k in torchvision_mobilenet().state_dict() if not k.startswith("classifier.")]
    assert list(MobileNetV2(nn.BatchNorm2d).state_dict()) == theirs


def test_every_parameter_gets_a_gradient():
    model = MobileNetV2(nn.BatchNorm2d)
    sum(f.sum() for f in model(torch.randn(2, 3, 64, 64))[1:]).backward()
    assert all(p.grad is not None for p in model.parameters())


def test_stages_hold_every_parameter_once():
    model = MobileNetV2(nn.BatchNorm2d)
    staged = [p for stage in model.stages for module in stage for p in module.parameters()]
    assert len(model.stages) == 5
    assert len(staged) == len({id(p) for p in staged}) == len(list(model.parameters()))


def test_initialisation_is_kaiming_fan_out():
    torch.manual_seed(0)
    for name, parameter in MobileNetV2(nn.BatchNorm2d).named_parameters():
        if parameter.ndim == 4 and parameter.numel() > 5000:
            fan_out = parameter.shape[0] * parameter.shape[2] * parameter.shape[3]
            assert parameter.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.05), name
