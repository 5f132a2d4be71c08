import pytest
import torch
import torchvision
from torch import nn
from torchvision.models._utils import IntermediateLayerGetter

from models.backbone import build_backbone
from models.norm import FrozenBatchNorm2d
from models.resnet import ResNet
from tests.helpers.random_norms import randomise_norm

DEPTHS = (18, 34, 50, 101)
LAYERS = {"layer1": "0", "layer2": "1", "layer3": "2", "layer4": "3"}


def torchvision_resnet(depth: int) -> nn.Module:
    """Torchvision's network with random BatchNorm statistics: else eval mode tests little."""
    torch.manual_seed(depth)
    model = getattr(torchvision.models, f"resnet{depth}")(weights=None)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            randomise_norm(module)
    return model.eval()


def without_classifier(model: nn.Module) -> dict[str, torch.Tensor]:
    return {k: v for k, v in model.state_dict().items() if not k.startswith("fc.")}


@pytest.mark.parametrize("depth", DEPTHS)
def test_keys_and_shapes_are_torchvisions(depth):
    theirs = without_classifier(torchvision_resnet(depth))
    ours = ResNet(depth, nn.BatchNorm2d).state_dict()
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}


@pytest.mark.usefixtures("double_precision")
@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("norm", [nn.BatchNorm2d, FrozenBatchNorm2d])
def test_features_are_torchvisions(depth, norm):
    theirs = torchvision_resnet(depth)
    ours = ResNet(depth, norm).eval()
    ours.load_state_dict(without_classifier(theirs))
    images = torch.randn(2, 3, 64, 97)
    with torch.no_grad():
        features = ours(images)
        expected = list(IntermediateLayerGetter(theirs, LAYERS)(images).values())
    assert len(features) == 4
    for level, (feature, reference) in enumerate(zip(features, expected, strict=True)):
        stride = ours.strides[level]
        assert feature.shape == (2, ours.channels[level], 64 // stride, -(-97 // stride))
        torch.testing.assert_close(feature, reference, rtol=1e-9, atol=1e-9)


@pytest.mark.usefixtures("double_precision")
def test_training_mode_equals_torchvisions():
    theirs = torchvision_resnet(18).train()
    ours = ResNet(18, nn.BatchNorm2d)
    ours.load_state_dict(without_classifier(theirs))
    images = torch.randn(2, 3, 64, 64)
    reference = IntermediateLayerGetter(theirs, LAYERS)(images)["3"]
    torch.testing.assert_close(ours(images)[3], reference, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(ours.bn1.running_mean, theirs.bn1.running_mean)


def test_initialisation_is_kaiming_fan_out():
    torch.manual_seed(0)
    model = ResNet(50, nn.BatchNorm2d)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 4:
            fan_out = parameter.shape[0] * parameter.shape[2] * parameter.shape[3]
            assert parameter.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.05), name
        else:
            one = name.endswith("weight") and not name.endswith("bn3.weight")
            assert (parameter == (1.0 if one else 0.0)).all(), name


def test_stages_hold_every_parameter_once():
    model = ResNet(34, nn.BatchNorm2d)
    staged = [p for stage in model.stages for module in stage for p in module.parameters()]
    assert len(model.stages) == 5
    assert len(staged) == len({id(p) for p in staged}) == len(list(model.parameters()))


@pytest.mark.parametrize("depth", [18, 50])
def test_every_layer_of_a_narrow_one_has_that_share_of_the_channels(depth):
    wide = ResNet(depth, nn.BatchNorm2d).state_dict()
    narrow = ResNet(depth, nn.BatchNorm2d, width=16).state_dict()
    for name, parameter in wide.items():
        shares = {a / b for a, b in zip(narrow[name].shape, parameter.shape, strict=True) if a != b}
        assert shares <= {0.25}, name
        assert bool(shares) == (parameter.ndim > 0), name


def test_unknown_depth():
    with pytest.raises(ValueError, match="depth is 20.*18, 34, 50, 101"):
        ResNet(20, nn.BatchNorm2d)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_residual_blocks_start_as_their_shortcut_unless_frozen(name):
    torch.manual_seed(0)
    block = build_backbone(name, norm="bn", frozen_stages=0).layer1[1].eval()
    x = torch.rand(1, block.conv1.in_channels, 4, 4)
    torch.testing.assert_close(block(x), x)
    frozen = build_backbone(name, norm="frozen_bn").layer1[1]
    assert (frozen(x) - x).abs().max() > 0.01
