from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from models.fpn import FPN, FPNConfig, enlarged

IN_CHANNELS = (12, 20, 28)
CHANNELS = 16


def feature_maps() -> list[torch.Tensor]:
    sizes = ((19, 26), (10, 13), (5, 7))  # odd sizes: the upsampled map is not twice the coarser
    return [torch.randn(2, c, h, w) for c, (h, w) in zip(IN_CHANNELS, sizes, strict=True)]


def torchvision_fpn(extra: str) -> FeaturePyramidNetwork:
    blocks = {
        "none": lambda: None,
        "pool": LastLevelMaxPool,
        "p6p7_from_p5": lambda: LastLevelP6P7(CHANNELS, CHANNELS),
        "p6p7_from_c5": lambda: LastLevelP6P7(IN_CHANNELS[-1], CHANNELS),
    }
    fpn = FeaturePyramidNetwork(list(IN_CHANNELS), CHANNELS, blocks[extra]())
    for name, parameter in fpn.named_parameters():
        if name.endswith("bias"):
            parameter.data.normal_()  # zero biases would hide a wrong mapping
    return fpn


def our_name(key: str) -> str:
    key = key.replace("inner_blocks.", "lateral.").replace("layer_blocks.", "output.")
    return (
        key.replace(".0.weight", ".weight").replace(".0.bias", ".bias").replace("extra_blocks.", "")
    )


@pytest.mark.usefixtures("double_precision")
@pytest.mark.parametrize("extra", ["none", "pool", "p6p7_from_p5", "p6p7_from_c5"])
def test_equals_torchvision(extra):
    torch.manual_seed(0)
    theirs = torchvision_fpn(extra)
    ours = FPN(IN_CHANNELS, FPNConfig(CHANNELS, extra))
    ours.load_state_dict({our_name(k): v for k, v in theirs.state_dict().items()})
    features = feature_maps()
    expected = theirs(OrderedDict((str(i), f) for i, f in enumerate(features)))
    levels = ours(features)
    assert len(levels) == len(expected) == ours.num_levels
    for level, reference in zip(levels, expected.values(), strict=True):
        torch.testing.assert_close(level, reference, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("extra", ["p6p7_from_p5", "p6p7_from_c5"])
def test_bfloat16_of_narrow_maps(extra):
    """Strides halve the width to 1, which was not finite on processors with AMX."""
    torch.manual_seed(0)
    fpn = FPN((64, 128), FPNConfig(128, extra))
    features = [torch.randn(8, 64, 12, 4), torch.randn(8, 128, 6, 2)]
    expected = fpn(features)
    with torch.autocast("cpu", torch.bfloat16):
        levels = fpn(features)
    assert [tuple(level.shape[-2:]) for level in levels[2:]] == [(3, 1), (2, 1)]
    for level, reference in zip(levels, expected, strict=True):
        assert level.dtype == torch.bfloat16
        torch.testing.assert_close(level.float(), reference, rtol=0.1, atol=0.1)


class AsOnCuda(TorchFunctionMode):
    """Autocast of a GPU, as far as a CPU's is different: it interpolates in float32."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.interpolate and torch.is_autocast_enabled("cpu"):
            args = (args[0].float(), *args[1:])
        return func(*args, **(kwargs or {}))


def test_enlarging_keeps_half_precision():
    """A sum with a float32 map would be float32, and cost twice the memory."""
    fpn, merged = FPN(IN_CHANNELS, FPNConfig(CHANNELS, "none")), []
    for layer in fpn.output:
        layer.register_forward_pre_hook(lambda module, args: merged.append(args[0].dtype))
    with AsOnCuda(), torch.autocast("cpu", torch.bfloat16):
        fpn(feature_maps())
    assert merged == [torch.bfloat16] * 3


@pytest.mark.parametrize("size", [(10, 14), (9, 13), (5, 7)])
def test_enlarged_repeats_values(size):
    x = torch.randn(2, 3, 5, 7).bfloat16()
    rows = torch.arange(size[0]) * 5 // size[0]
    columns = torch.arange(size[1]) * 7 // size[1]
    assert torch.equal(enlarged(x, size), x[:, :, rows][..., columns])


def test_levels_and_sizes():
    levels = FPN(IN_CHANNELS, FPNConfig(CHANNELS))(feature_maps())
    assert [tuple(p.shape) for p in levels] == [
        (2, CHANNELS, h, w) for h, w in ((19, 26), (10, 13), (5, 7), (3, 4), (2, 2))
    ]


def test_initialisation_is_kaiming_uniform():
    torch.manual_seed(0)
    fpn = FPN((256, 512), FPNConfig(128))
    for name, parameter in fpn.named_parameters():
        if parameter.ndim == 1:
            assert (parameter == 0).all()
        else:
            bound = (3 / parameter[0].numel()) ** 0.5  # gain 1 for a = 1
            assert parameter.abs().max().item() == pytest.approx(bound, rel=1e-3), name
            assert parameter.std().item() == pytest.approx(bound / 3**0.5, rel=0.02), name


def test_the_input_maps_are_not_modified():
    features = feature_maps()
    copies = [f.clone() for f in features]
    FPN(IN_CHANNELS, FPNConfig(CHANNELS, "none"))(features)
    assert all(torch.equal(f, c) for f, c in zip(features, copies, strict=True))


def test_unknown_extra_level():
    with pytest.raises(ValueError, match="'p6'.*valid: none, pool, p6p7_from_p5, p6p7_from_c5"):
        FPN(IN_CHANNELS, FPNConfig(CHANNELS, "p6"))


@pytest.mark.usefixtures("double_precision")
def test_batch_norm_equals_torchvision():
    torch.manual_seed(0)
    theirs = FeaturePyramidNetwork(
        list(IN_CHANNELS), CHANNELS, LastLevelMaxPool(), norm_layer=nn.BatchNorm2d
    )
    ours = FPN(IN_CHANNELS, FPNConfig(CHANNELS, "pool", norm="bn"))
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            module.weight.data.normal_()
            module.bias.data.normal_()
    state = theirs.state_dict()
    state = {key.replace("inner_blocks", "lateral"): value for key, value in state.items()}
    state = {key.replace("layer_blocks", "output"): value for key, value in state.items()}
    ours.load_state_dict(state)
    features = feature_maps()
    expected = theirs.eval()(OrderedDict((str(i), f) for i, f in enumerate(features)))
    for level, reference in zip(ours.eval()(features), expected.values(), strict=True):
        torch.testing.assert_close(level, reference, rtol=1e-9, atol=1e-9)


@pytest.mark.usefixtures("double_precision")
def test_group_norm_does_not_mix_images():
    fpn = FPN(IN_CHANNELS, FPNConfig(CHANNELS, "none", norm="gn")).train()
    features = feature_maps()
    alone = fpn([f[:1] for f in features])
    for together, single in zip(fpn(features), alone, strict=True):
        torch.testing.assert_close(together[:1], single, rtol=1e-9, atol=1e-9)


def test_unknown_norm():
    with pytest.raises(ValueError, match="'batch'.*valid: none, gn, bn"):
        FPN(IN_CHANNELS, FPNConfig(CHANNELS, norm="batch"))
