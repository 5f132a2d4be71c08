import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d as TorchvisionFrozen

from models.norm import FrozenBatchNorm2d


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
