import pytest
import torch
import torchvision
from torch import nn

from models.backbone import BACKBONES, build_backbone, load_backbone_weights


def trained(module: nn.Module) -> bool:
    return any(p.requires_grad for p in module.parameters())


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
@pytest.mark.parametrize("count", range(6))
def test_frozen_stages_stay_in_eval_and_need_no_gradient(name, count):
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


def test_frozen_bn_is_in_eval_in_trained_stages_too():
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


def test_freezing_is_for_good():
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


@pytest.mark.parametrize("wrap", [None, "model", "state_dict"])
def test_weights_load_without_the_classifier(tmp_path, wrap):
    theirs = torchvision.models.resnet18(weights=None).state_dict()
    file = tmp_path / "weights.pth"
    torch.save({wrap: theirs, "epoch": 3} if wrap else theirs, file)
    backbone = build_backbone("resnet18")
    load_backbone_weights(backbone, file)
    assert all(torch.equal(v, theirs[k]) for k, v in backbone.state_dict().items())


def test_weights_without_step_counters_load(tmp_path):
    theirs = torchvision.models.resnet18(weights=None).state_dict()
    old = {k: v for k, v in theirs.items() if not k.endswith("num_batches_tracked")}
    torch.save(old, tmp_path / "old.pth")
    backbone = build_backbone("resnet18")
    load_backbone_weights(backbone, tmp_path / "old.pth")
    assert torch.equal(backbone.layer4[1].conv2.weight, theirs["layer4.1.conv2.weight"])


def error_of(name: str, file) -> str:
    with pytest.raises(ValueError, match="weights.pth|resnet18.pth|none.pth") as caught:
        load_backbone_weights(build_backbone(name), file)
    message = str(caught.value)
    assert str(file) in message
    assert "\n" not in message
    return message


@pytest.mark.parametrize("name", sorted(set(BACKBONES) - {"resnet18"}))
def test_weights_of_another_architecture(tmp_path, name):
    file = tmp_path / "resnet18.pth"
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), file)
    message = error_of(name, file)
    assert f"are not weights of {name}: " in message
    assert "set model.backbone" in message


def test_the_first_bad_key_is_named(tmp_path):
    file = tmp_path / "weights.pth"
    good = build_backbone("resnet18").state_dict()

    torch.save({k: v for k, v in good.items() if k != "layer1.0.conv2.weight"}, file)
    assert "layer1.0.conv2.weight is missing" in error_of("resnet18", file)

    torch.save({**good, "layer5.weight": torch.zeros(1)}, file)
    assert "layer5.weight is unexpected" in error_of("resnet18", file)

    torch.save({**good, "bn1.bias": torch.zeros(65)}, file)
    assert "bn1.bias is (65,) instead of (64,)" in error_of("resnet18", file)


def test_a_failed_load_changes_nothing(tmp_path):
    backbone = build_backbone("resnet18")
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    other = {k: v + 1 for k, v in before.items() if k != "bn1.bias"}
    torch.save(other, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match="bn1.bias is missing"):
        load_backbone_weights(backbone, tmp_path / "weights.pth")
    assert all(torch.equal(v, before[k]) for k, v in backbone.state_dict().items())


@pytest.mark.parametrize("content", [b"", b"no weights", b"PK\x03\x04 a damaged archive"])
def test_unreadable_file(tmp_path, content):
    file = tmp_path / "weights.pth"
    file.write_bytes(content)
    assert "cannot be read" in error_of("resnet18", file)


def test_truncated_file(tmp_path):
    file = tmp_path / "weights.pth"
    torch.save(build_backbone("resnet18").state_dict(), file)
    file.write_bytes(file.read_bytes()[:100_000])
    assert "cannot be read" in error_of("resnet18", file)


def test_missing_file(tmp_path):
    assert "FileNotFoundError" in error_of("resnet18", tmp_path / "none.pth")


@pytest.mark.parametrize("content", [{}, [1, 2], {"epoch": 3}, torch.zeros(2)])
def test_file_without_a_state_dict(tmp_path, content):
    file = tmp_path / "weights.pth"
    torch.save(content, file)
    assert "holds no state_dict" in error_of("resnet18", file)
