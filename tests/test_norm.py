import copy

import pytest
import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d as TorchvisionFrozen

from models.norm import FrozenBatchNorm2d, convolve_and_normalise


def randomised(channels: int) -> nn.BatchNorm2d:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(channels)
    for tensor in (norm.weight.data, norm.bias.data, norm.running_mean):
        tensor.normal_()
    norm.running_var.uniform_(0.5, 2.0)
    return norm


def test_stays_in_eval_and_keeps_its_statistics():
    model = nn.Sequential(FrozenBatchNorm2d(4))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    model.train()
    model(torch.randn(3, 4, 5, 5) + 7)
    assert model.training
    assert not model[0].training
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_has_no_trainable_parameter():
    assert not any(p.requires_grad for p in FrozenBatchNorm2d(4).parameters())


def test_keys_are_those_of_batch_norm():
    norm = randomised(6)
    frozen = FrozenBatchNorm2d(6)
    assert list(frozen.state_dict()) == list(norm.state_dict())
    frozen.load_state_dict(norm.state_dict())


@pytest.mark.usefixtures("double_precision")
def test_equals_torchvision_in_value_and_gradient():
    norm = randomised(6)
    ours, theirs = FrozenBatchNorm2d(6), TorchvisionFrozen(6)
    ours.load_state_dict(norm.state_dict())
    theirs.load_state_dict(norm.state_dict())
    x = torch.randn(2, 6, 3, 5, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    ours.train()(x).square().sum().backward()
    theirs(y).square().sum().backward()
    torch.testing.assert_close(ours(x), theirs(y))
    torch.testing.assert_close(x.grad, y.grad)


@pytest.mark.parametrize("groups", [1, 4])
def test_folded_into_a_convolution_it_gives_the_same_values_and_gradients(groups):
    norm = randomised(8).double().eval()
    conv = nn.Conv2d(4, 8, 3, 2, padding=1, groups=groups, bias=False).double()
    conv_apart, norm_apart = copy.deepcopy(conv), copy.deepcopy(norm)
    x = torch.randn(2, 4, 5, 7, dtype=torch.double, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    folded, apart = convolve_and_normalise(conv, norm, x), norm_apart(conv_apart(y))
    torch.testing.assert_close(folded, apart)
    folded.square().sum().backward()
    apart.square().sum().backward()
    torch.testing.assert_close(x.grad, y.grad)
    torch.testing.assert_close(conv.weight.grad, conv_apart.weight.grad)
    torch.testing.assert_close(norm.weight.grad, norm_apart.weight.grad)
    torch.testing.assert_close(norm.bias.grad, norm_apart.bias.grad)


@pytest.mark.usefixtures("double_precision")
def test_in_training_the_statistics_are_those_of_the_batch():
    norm, conv, x = randomised(8), nn.Conv2d(4, 8, 1, bias=False), torch.randn(2, 4, 5, 7)
    apart = copy.deepcopy(norm)
    torch.testing.assert_close(convolve_and_normalise(conv, norm, x), apart(conv(x)))
    torch.testing.assert_close(norm.running_mean, apart.running_mean)
