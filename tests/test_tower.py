import pytest
import torch
from torch import nn

from models.tower import conv_norm, conv_tower, groups_for


@pytest.mark.parametrize(
    ("norm", "kinds"),
    [
        ("none", [nn.Conv2d, nn.ReLU]),
        ("gn", [nn.Conv2d, nn.GroupNorm, nn.ReLU]),
        ("bn", [nn.Conv2d, nn.BatchNorm2d, nn.ReLU]),
    ],
)
def test_layers(norm, kinds):
    tower = conv_tower(8, 3, norm)
    assert [type(layer) for layer in tower] == kinds * 3
    convs = [layer for layer in tower if isinstance(layer, nn.Conv2d)]
    assert all((conv.bias is None) == (norm != "none") for conv in convs)
    assert conv_tower(8, 1, norm, bias=True)[0].bias is not None
    assert tower(torch.randn(2, 8, 5, 7)).shape == (2, 8, 5, 7)


def test_no_convolution_changes_nothing():
    x = torch.randn(2, 6, 3, 3)
    assert conv_tower(6, 0)(x) is x


@pytest.mark.parametrize(
    ("channels", "groups"), [(256, 32), (96, 32), (64, 32), (48, 16), (32, 16), (6, 2), (1, 1)]
)
def test_groups_divide_the_channels(channels, groups):
    assert groups_for(channels) == groups
    assert conv_norm(4, channels, 3, "gn")[1].num_groups == groups


def test_unknown_norm():
    with pytest.raises(ValueError, match="normalisation is 'ln'.*none, gn, bn"):
        conv_tower(4, 1, "ln")
