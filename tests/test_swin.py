from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torchvision.models.swin_transformer import SwinTransformer as Theirs

from aligndet.image_domain import ImageDomainConfig, build_image_domain
from aligndet.moco import MoCo, MoCoConfig
from data.image_folder import ImageFiles
from models.backbone import BACKBONES, build_backbone
from models.backbone_weights import load_backbone_weights
from models.classifier import Classifier
from models.detector import DETECTORS, ModelConfig, build_detector
from models.swin import SIZES, SwinConfig, SwinTransformer, stochastic_depth
from tests.helpers.narrow_backbones import NARROW, narrow_backbones

MOCO = MoCoConfig(queue=4, embedding_width=8)
SIMMIM = ImageDomainConfig(method="simmim")
IMAGES = ImageFiles(Path("none"), ("1", "2", "3", "4"))
STAGES = (1, 3, 5, 7)  # torchvision's features[i] that end at stride 4, 8, 16, 32
OUTPUT_NORMS = {
    f"norm_{level}.{kind}" for level in ("c2", "c3", "c4") for kind in ("weight", "bias")
}


def torchvision_swin() -> nn.Module:
    torch.manual_seed(0)
    model = Theirs([4, 4], 24, [2, 2, 2, 2], [1, 2, 4, 8], [7, 7], num_classes=5)
    for parameter in model.parameters():  # biases too, and large enough to tell
        parameter.data.add_(torch.randn_like(parameter), alpha=0.1)
    return model.eval()


def narrow_pair() -> tuple[nn.Module, SwinTransformer]:
    """torchvision's model and ours with the same weights."""
    theirs, ours = torchvision_swin(), SwinTransformer(NARROW).eval()
    weights = {k: v for k, v in theirs.state_dict().items() if not k.startswith("head.")}
    result = ours.load_state_dict(weights, strict=False)
    assert set(result.missing_keys) == OUTPUT_NORMS
    assert not result.unexpected_keys
    return theirs, ours


def stage_outputs(model: nn.Module, images: torch.Tensor) -> list[torch.Tensor]:
    outputs, x = [], images
    for index, layer in enumerate(model.features):
        x = layer(x)
        if index in STAGES:
            outputs.append(x)
    return outputs


# 68 x 44 px are 17 x 11 cells: odd maps at every stage, and windows of padding.
@pytest.mark.parametrize("size", [(224, 224), (68, 44), (44, 260), (4, 4)])
@pytest.mark.usefixtures("double_precision")
@torch.no_grad()
def test_stages_are_torchvisions(size):
    theirs, ours = narrow_pair()
    images = torch.randn(2, 3, *size)
    for mine, reference in zip(
        stage_outputs(ours, images), stage_outputs(theirs, images), strict=True
    ):
        torch.testing.assert_close(mine, reference, rtol=1e-9, atol=1e-9)


@pytest.mark.usefixtures("double_precision")
@torch.no_grad()
def test_images_that_are_no_whole_patches_are_filled_up_with_zeros():
    theirs, ours = narrow_pair()
    images = torch.randn(2, 3, 70, 45)  # torchvision would cut off two rows and a column
    expected = stage_outputs(theirs, F.pad(images, (0, 3, 0, 2)))
    for norm in (ours.norm_c2, ours.norm_c3, ours.norm_c4):
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    norms = (ours.norm_c2, ours.norm_c3, ours.norm_c4, theirs.norm)
    features = ours(images)
    assert [f.shape[1] for f in features] == list(ours.channels) == [24, 48, 96, 192]
    for stride, feature, reference, norm in zip(
        (4, 8, 16, 32), features, expected, norms, strict=True
    ):
        assert feature.shape == (2, feature.shape[1], -(-70 // stride), -(-45 // stride))
        reference = F.layer_norm(reference, reference.shape[-1:], norm.weight, norm.bias)
        torch.testing.assert_close(feature, reference.permute(0, 3, 1, 2), rtol=1e-9, atol=1e-9)


@pytest.mark.usefixtures("double_precision")
def test_gradients_are_torchvisions():
    theirs, ours = narrow_pair()
    images = torch.randn(2, 3, 68, 44)
    ours(images)[-1].square().sum().backward()
    theirs.norm(stage_outputs(theirs, images)[-1]).square().sum().backward()
    expected = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        if name not in OUTPUT_NORMS:
            torch.testing.assert_close(
                parameter.grad, expected[name].grad, rtol=1e-8, atol=1e-10, msg=name
            )


@pytest.mark.usefixtures("double_precision")
@torch.no_grad()
def test_a_classifier_is_torchvisions():
    theirs, ours = narrow_pair()
    classifier = Classifier(ours, 5).eval()
    classifier.linear.load_state_dict(theirs.head.state_dict())
    images = torch.randn(2, 3, 64, 96)
    torch.testing.assert_close(classifier(images), theirs(images), rtol=1e-9, atol=1e-9)
    assert set(classifier.torchvision_state_dict()) - OUTPUT_NORMS == set(theirs.state_dict())


@pytest.mark.parametrize("name", ["swin_t", "swin_s", "swin_b"])
def test_names_and_shapes_are_torchvisions(name):
    with torch.device("meta"):
        theirs = getattr(torchvision.models, name)().state_dict()
        ours = BACKBONES[name]().state_dict()
    expected = {k: v.shape for k, v in theirs.items() if not k.startswith("head.")}
    assert {k: v.shape for k, v in ours.items() if k not in OUTPUT_NORMS} == expected
    assert set(ours) - set(expected) == OUTPUT_NORMS


def test_a_file_of_torchvision_fits_and_its_report_names_the_fresh_norms(tmp_path):
    theirs, ours = torchvision_swin(), SwinTransformer(NARROW)
    torch.save(theirs.state_dict(), tmp_path / "swin.pth")
    report = load_backbone_weights(ours, tmp_path / "swin.pth")
    assert set(report.missing) == OUTPUT_NORMS
    assert set(report.unused) == {"head.weight", "head.bias"}
    for name, value in ours.state_dict().items():
        if name not in OUTPUT_NORMS:
            assert torch.equal(value, theirs.state_dict()[name]), name


def test_a_wrong_index_of_positions_is_refused(tmp_path):
    state = torchvision_swin().state_dict()
    state["features.1.0.attn.relative_position_index"][3] = 999
    torch.save(state, tmp_path / "swin.pth")
    with pytest.raises(ValueError, match="features.1.0.attn.relative_position_index is not the"):
        load_backbone_weights(SwinTransformer(NARROW), tmp_path / "swin.pth")


def test_every_parameter_gets_a_finite_gradient():
    model = SwinTransformer(SwinConfig("narrow", 24, (2, 2, 2, 2), (1, 2, 4, 8), drop=0.5)).train()
    # The sum of a normalised map is constant, so each value has a weight of its own.
    maps = model(torch.randn(2, 3, 70, 45))
    sum((f * torch.randn_like(f)).sum() for f in maps).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_stages_hold_every_parameter_once():
    model = SwinTransformer(NARROW)
    staged = [p for stage in model.stages for module in stage for p in module.parameters()]
    assert len(model.stages) == 5
    assert len(staged) == len({id(p) for p in staged}) == len(list(model.parameters()))


@pytest.mark.parametrize("count", range(6))
def test_frozen_stages_need_no_gradient_and_stay_in_eval_mode(count):
    model = SwinTransformer(NARROW)
    model.freeze(count)
    model.train()
    for index, stage in enumerate(model.stages):
        for module in stage:
            assert {p.requires_grad for p in module.parameters()} == {index >= count}
            assert {m.training for m in module.modules()} == {index >= count}


def test_stochastic_depth_keeps_the_mean_and_leaves_out_whole_images():
    torch.manual_seed(0)
    x = torch.ones(10_000, 2, 3)
    out = stochastic_depth(x, 0.3, training=True)
    assert (out == out[:, :1, :1]).all()
    assert set(out.unique().tolist()) == {0.0, torch.tensor(1 / 0.7).item()}
    # The share of images that stay has a standard deviation of 0.0046.
    assert (out[:, 0, 0] > 0).float().mean().item() == pytest.approx(0.7, abs=0.025)
    assert stochastic_depth(x, 0.3, training=False) is x


def test_the_chance_to_leave_out_a_block_grows_with_depth():
    with torch.device("meta"):
        model = SwinTransformer(SIZES["swin_t"])
        theirs = torchvision.models.swin_t()
    drops = [block.drop for index in STAGES for block in model.features[index]]
    expected = [block.stochastic_depth.p for index in STAGES for block in theirs.features[index]]
    assert drops == pytest.approx(expected)


def test_a_norm_that_is_not_there():
    with pytest.raises(ValueError, match="model.norm is 'bn', but swin_t has no BatchNorm; leave"):
        build_backbone("swin_t", norm="bn")


@pytest.mark.usefixtures("double_precision")
def test_checkpoints_change_no_gradient_and_keep_less():
    """With the same random numbers for stochastic depth in both passes."""
    config = SwinConfig("narrow", 24, (2, 2, 2, 2), (1, 2, 4, 8), drop=0.5)
    images, found = torch.randn(2, 3, 70, 45), []
    for checkpoints in (False, True):
        torch.manual_seed(0)
        model = SwinTransformer(config).train()
        if checkpoints:
            model.checkpoint_activations()
        kept = []  # bytes of what the backward pass needs
        with torch.autograd.graph.saved_tensors_hooks(
            lambda x, kept=kept: kept.append(x.nbytes) or x, lambda x: x
        ):
            maps = model(images)
        sum((f * f.detach().sin()).sum() for f in maps).backward()
        found.append(([*maps, *(p.grad for p in model.parameters())], sum(kept)))
    (plain, bytes_plain), (again, bytes_again) = found
    for one, other in zip(plain, again, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    assert bytes_again < 0.2 * bytes_plain


@pytest.mark.parametrize(("name", "can"), [("swin_t", True), ("resnet18", False)])
@pytest.mark.parametrize(
    "build",
    [
        lambda config: build_detector(config, num_classes=2).backbone,
        lambda config: build_image_domain(config, SIMMIM, 4, IMAGES).backbone,
    ],
    ids=["detector", "image stage"],
)
def test_who_can_checkpoint_activations(name, can, build):
    config = ModelConfig(backbone=name, checkpoint_activations=True)
    with narrow_backbones():
        if can:
            assert build(config).checkpoints
            return
        with pytest.raises(ValueError, match="model.checkpoint_activations is on, but resnet18"):
            build(config)


@pytest.mark.parametrize("detector", DETECTORS)
def test_every_detector_takes_it(detector):
    config = ModelConfig(detector=detector, backbone="swin_t", frozen_stages=0)
    with narrow_backbones():
        model = build_detector(config, num_classes=2).train()
    targets = [{"boxes": torch.tensor([[4.0, 4, 40, 40]]), "labels": torch.tensor([1])}]
    if detector == "mask_rcnn":
        targets[0]["masks"] = torch.ones(1, 64, 64, dtype=torch.bool)
    losses = model(torch.randn(1, 3, 64, 64), torch.tensor([[64, 64]]), targets)
    sum(losses.values()).backward()
    for name, parameter in model.backbone.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
        assert parameter.grad is None or parameter.grad.isfinite().all(), name
    trained = {name for name, p in model.backbone.named_parameters() if p.requires_grad}
    unread = {"fcos": 1, "retinanet": 1, "detr": 3}.get(detector, 0)
    assert OUTPUT_NORMS - trained == {n for n in OUTPUT_NORMS if int(n[6]) < 2 + unread}


@pytest.mark.parametrize("build", [lambda b: Classifier(b, 3), lambda b: MoCo(b, MOCO).online])
def test_the_image_stage_leaves_no_trained_parameter_without_gradient(build):
    task = build(SwinTransformer(NARROW)).train()
    task(torch.randn(2, 3, 64, 64))[:, 0].sum().backward()
    for name, parameter in task.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
