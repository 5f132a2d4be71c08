import pytest
import torch
from torch import nn

from models.backbone import build_backbone


def trained(module: nn.Module) -> bool:
    return any(p.requires_grad for p in module.parameters())


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
@pytest.mark.parametrize("count", range(6))
def test_frozen_stages_stay_in_eval_mode_and_need_no_gradient(name, count):
    backbone = build_backbone(name, norm="bn", frozen_stages=count)
    backbone.train()
    assert backbone.training
    for index, stage in enumerate(backbone.stages):
        for module in stage:
            assert trained(module) == (index >= count)
            modes = {m.training for m in module.modules()}
            assert modes == {index >= count}


def test_frozen_stages_are_not_changed_by_a_training_step():
    torch.manual_seed(0)
    backbone = build_backbone("resnet18", norm="bn", frozen_stages=2).train()
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in backbone.parameters() if p.requires_grad], lr=0.1)
    backbone(torch.randn(2, 3, 64, 64))[3].square().mean().backward()
    optimizer.step()
    after = backbone.state_dict()
    changed = {key.split(".")[0] for key in after if not torch.equal(before[key], after[key])}
    assert changed == {"layer2", "layer3", "layer4"}


def test_frozen_bn_is_in_eval_mode_in_trained_stages_too():
    backbone = build_backbone("resnet18", norm="frozen_bn", frozen_stages=0).train()
    norms = [m for m in backbone.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 20
    assert not any(m.training for m in norms)
    assert {k for k, p in backbone.named_parameters() if p.requires_grad} == {
        k for k, p in backbone.named_parameters() if p.ndim == 4
    }


def test_a_frozen_backbone_builds_no_graph():
    backbone = build_backbone("resnet18", frozen_stages=5)
    assert not any(f.requires_grad for f in backbone(torch.randn(1, 3, 64, 64)))


def test_freezing_is_permanent():
    backbone = build_backbone("resnet18", norm="bn", frozen_stages=5)
    backbone.freeze(1)
    backbone.train()
    assert not trained(backbone)
    assert not backbone.layer4.training


@pytest.mark.parametrize("count", [-1, 6])
def test_impossible_number_of_frozen_stages(count):
    with pytest.raises(ValueError, match=f"model.frozen_stages is {count}"):
        build_backbone("resnet18", frozen_stages=count)


def test_unknown_names():
    with pytest.raises(ValueError, match="model.backbone is 'resnet5'.*did you mean resnet50"):
        build_backbone("resnet5")
    with pytest.raises(ValueError, match="model.norm is 'gn'.*frozen_bn, bn"):
        build_backbone("resnet18", norm="gn")
