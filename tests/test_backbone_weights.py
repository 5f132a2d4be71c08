"""Weights of other projects: told from their names, loaded whole, with torchvision's features."""

from __future__ import annotations

import argparse
import fractions

import pytest
import torch
import torchvision
from torch import nn

from models.backbone import BACKBONES, build_backbone
from models.backbone_weights import load_backbone_weights
from tests.random_norms import randomise_norm


def source(name):
    """Torchvision's model with random weights and statistics."""
    torch.manual_seed(0)
    model = getattr(torchvision.models, name)(weights=None).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            randomise_norm(module)
    return model


def prefixed(weights, prefix, **others):
    """``weights`` under a prefix, and other keys."""
    extra = {key.replace("__", "."): torch.zeros(2) for key in others}
    return {f"{prefix}{key}": value for key, value in weights.items()} | extra


def without_fc(weights):
    return {k: v for k, v in weights.items() if not k.startswith(("fc.", "classifier."))}


def zeros(weights):
    """What must not be taken: another encoder's weights."""
    return {key: torch.zeros_like(value) for key, value in weights.items()}


def moco(weights):
    other = prefixed(zeros(weights), "module.encoder_k.")
    mine = prefixed(weights, "module.encoder_q.", module__queue=0, module__queue_ptr=0)
    return {"epoch": 200, "arch": "resnet50", "state_dict": {**other, **mine}}


def moco_extracted(weights):
    mine = prefixed(weights, "encoder_q.", queue=0, queue_ptr=0)
    return {**prefixed(zeros(weights), "encoder_k."), **mine}


def moco_v3(weights):
    other = prefixed(zeros(weights), "module.momentum_encoder.")
    return {"state_dict": {**other, **prefixed(weights, "module.base_encoder.")}}


def swav(weights):
    more = {"module__projection_head__0__weight": 0, "module__prototypes__weight": 0}
    return prefixed(without_fc(weights), "module.", **more)


def dino(weights):
    student = prefixed(zeros(without_fc(weights)), "module.backbone.", module__head__mlp__weight=0)
    teacher = prefixed(without_fc(weights), "module.backbone.", module__head__mlp__weight=0)
    options = argparse.Namespace(arch="resnet50", lr=0.3)
    return {"student": student, "teacher": teacher, "epoch": 3, "args": options}


def dino_single(weights):
    return {"teacher": prefixed(without_fc(weights), "backbone.", head__mlp__weight=0)}


def pixpro(weights):
    backbone = without_fc(weights)
    other = prefixed(zeros(backbone), "module.encoder_k.", module__projector__linear1__weight=0)
    model = {**other, **prefixed(backbone, "module.encoder.")}
    return {"opt": argparse.Namespace(epochs=100), "model": model, "epoch": 100}


def densecl(weights):
    backbone = without_fc(weights)
    other = prefixed(zeros(backbone), "encoder_k.0.", queue=0, queue2=0, encoder_q__1__mlp=0)
    return {"state_dict": {**other, **prefixed(backbone, "encoder_q.0.")}}


def mm(weights):
    more = {"head__fc__weight": 0, "neck__mlp__weight": 0, "data_preprocessor__mean": 0}
    return {"meta": {"epoch": 1}, "state_dict": prefixed(without_fc(weights), "backbone.", **more)}


def data_parallel(weights):
    return prefixed(weights, "module.")


def our_detector(weights):
    more = {"neck__lateral__0__weight": 0, "head__cls_logits__bias": 0}
    return {"model": prefixed(without_fc(weights), "backbone.", **more), "stage": "box"}


def our_image_stage(weights):
    return {"model": weights, "stage": "image", "config": {"backbone": "x"}, "classes": []}


def our_run(weights):
    other = prefixed(zeros(without_fc(weights)), "target.backbone.")
    return {"model": {**other, **prefixed(without_fc(weights), "online.backbone.")}, "step": 7}


PREFIXED = {
    "plain": (lambda weights: weights, "torchvision, timm or this project (no prefix)"),
    "moco": (moco, "MoCo v1 or v2, its query encoder (module.encoder_q.)"),
    "moco, extracted": (moco_extracted, "MoCo v1 or v2, its query encoder (encoder_q.)"),
    "moco v3": (moco_v3, "MoCo v3, its base encoder (module.base_encoder.)"),
    "swav": (swav, "SwAV (module.)"),
    "dino": (dino, "DINO (module.backbone.)"),
    "dino, one process": (dino_single, "mmselfsup, mmpretrain, DenseCL or DINO (backbone.)"),
    "pixpro": (pixpro, "PixPro, its online encoder (module.encoder.)"),
    "densecl": (densecl, "DenseCL, its query encoder (encoder_q.0.)"),
    "mmselfsup": (mm, "mmselfsup, mmpretrain, DenseCL or DINO (backbone.)"),
    "data parallel": (data_parallel, "torchvision's names in DataParallel (module.)"),
    "our detector": (our_detector, "a detector of this project (backbone.)"),
    "our image stage": (our_image_stage, "torchvision, timm or this project (no prefix)"),
    "our last.pt": (our_run, "a run of this project, its online encoder (online.backbone.)"),
}


def torchvision_blocks(model):
    """(stage, index, layers) of each block of torchvision's MobileNetV2; stages are told from the
    number of channels that comes out, which differs from one to the next."""
    stage, index, width = -1, 0, None
    for layer in list(model.features)[1:-1]:
        channels = layer.conv[-1].num_features
        stage, index = (stage, index + 1) if channels == width else (stage + 1, 0)
        width = channels
        yield stage, index, layer.conv


def put(result, name, module):
    result.update({f"{name}.{key}": value for key, value in module.state_dict().items()})


def timm_mobilenet(model):
    result = {"classifier.weight": torch.zeros(2), "classifier.bias": torch.zeros(2)}
    put(result, "conv_stem", model.features[0][0])
    put(result, "bn1", model.features[0][1])
    for stage, index, conv in torchvision_blocks(model):
        *wrapped, last, last_norm = conv
        names = ("conv_dw", "conv_pw") if len(wrapped) == 1 else ("conv_pw", "conv_dw", "conv_pwl")
        layers = [(pair[0], pair[1]) for pair in wrapped] + [(last, last_norm)]
        for number, (name, (layer, norm)) in enumerate(zip(names, layers, strict=True), start=1):
            put(result, f"blocks.{stage}.{index}.{name}", layer)
            put(result, f"blocks.{stage}.{index}.bn{number}", norm)
    put(result, "conv_head", model.features[18][0])
    put(result, "bn2", model.features[18][1])
    return result


def mm_mobilenet(model, prefix="backbone."):
    result = {"head.fc.weight": torch.zeros(2)}
    put(result, f"{prefix}conv1.conv", model.features[0][0])
    put(result, f"{prefix}conv1.bn", model.features[0][1])
    for stage, index, conv in torchvision_blocks(model):
        *wrapped, last, last_norm = conv
        layers = [(pair[0], pair[1]) for pair in wrapped] + [(last, last_norm)]
        for number, (layer, norm) in enumerate(layers):
            put(result, f"{prefix}layer{stage + 1}.{index}.conv.{number}.conv", layer)
            put(result, f"{prefix}layer{stage + 1}.{index}.conv.{number}.bn", norm)
    put(result, f"{prefix}conv2.conv", model.features[18][0])
    put(result, f"{prefix}conv2.bn", model.features[18][1])
    return {"state_dict": result}


RENAMED = {
    "timm": (timm_mobilenet, "timm's MobileNetV2 (no prefix)"),
    "mmpretrain": (mm_mobilenet, "mmpretrain's MobileNetV2 (backbone.)"),
    "mmpretrain, extracted": (
        lambda model: mm_mobilenet(model, prefix=""),
        "mmpretrain's MobileNetV2, extracted (no prefix)",
    ),
}


@torch.no_grad()
def assert_torchvisions_features(backbone, model):
    """The last map of ours is what torchvision's model pools."""
    images, seen = torch.randn(2, 3, 64, 96), []
    layer = model.features if hasattr(model, "features") else model.layer4
    handle = layer.register_forward_hook(lambda module, inputs, output: seen.append(output))
    model(images)
    handle.remove()
    result = backbone.eval()(images)[-1]
    assert seen[0].std() > 1e-3
    torch.testing.assert_close(result, seen[0], rtol=1e-4, atol=1e-5)


def check_import(tmp_path, name, content, layout):
    file = tmp_path / "weights.pth"
    torch.save(content, file)
    backbone = build_backbone(name)
    report = load_backbone_weights(backbone, file)
    assert report.layout == layout
    assert set(report.loaded) == set(backbone.state_dict())
    assert report.missing == ()
    assert backbone.origin is report
    return backbone, report


@pytest.mark.parametrize("layout", PREFIXED)
@pytest.mark.parametrize("name", ["resnet18", "resnet50", "mobilenet_v2"])
def test_every_prefix(tmp_path, name, layout):
    model = source(name)
    wrap, words = PREFIXED[layout]
    content = wrap(model.state_dict())
    backbone, report = check_import(tmp_path, name, content, words)
    assert_torchvisions_features(backbone, model)
    for key in ("model", "state_dict", "teacher"):
        content = content.get(key, content)
    assert len(report.loaded) + len(report.unused) == len(content)


@pytest.mark.parametrize("layout", RENAMED)
def test_every_other_name_of_mobilenet(tmp_path, layout):
    model = source("mobilenet_v2")
    convert, words = RENAMED[layout]
    backbone, report = check_import(tmp_path, "mobilenet_v2", convert(model), words)
    assert_torchvisions_features(backbone, model)
    assert set(report.unused) <= {"classifier.weight", "classifier.bias", "head.fc.weight"}


def test_what_was_loaded_and_what_not_is_said(tmp_path):
    _, report = check_import(
        tmp_path, "resnet18", moco(source("resnet18").state_dict()), PREFIXED["moco"][1]
    )
    assert report.summary().splitlines() == [
        f"backbone weights from {tmp_path}/weights.pth",
        "  recognised  MoCo v1 or v2, its query encoder (module.encoder_q.)",
        "  loaded      120 of 120 tensors of resnet18",
        "  not used    module.encoder_k (122), module.encoder_q (2), module.queue (1), "
        "module.queue_ptr (1)",
    ]


@pytest.mark.parametrize("layout", PREFIXED)
@pytest.mark.parametrize(("theirs", "ours"), [("resnet34", "resnet18"), ("resnet18", "resnet50")])
def test_another_depth_in_every_layout(tmp_path, layout, theirs, ours):
    file = tmp_path / "weights.pth"
    torch.save(PREFIXED[layout][0](source(theirs).state_dict()), file)
    message = error_of(ours, file)
    assert f"are not weights of {ours}: " in message
    assert f"set model.backbone={theirs}, or give another file" in message
    assert PREFIXED[layout][1].split(" (")[0] in message


def test_another_width(tmp_path):
    file = tmp_path / "weights.pth"
    torch.save(torchvision.models.wide_resnet50_2(weights=None).state_dict(), file)
    message = error_of("resnet50", file)
    assert "layer1.0.conv1.weight is (128, 64, 1, 1) instead of (64, 64, 1, 1)" in message
    assert "of 318 tensors fit" in message
    assert "load what fits with model.backbone_partial=true" in message
    file = tmp_path / "weights.pth"
    torch.save(torchvision.models.mobilenet_v2(weights=None, width_mult=0.5).state_dict(), file)
    message = error_of("mobilenet_v2", file)
    assert "features.0.0.weight is (16, 3, 3, 3) instead of (32, 3, 3, 3)" in message


def test_what_fits_can_be_loaded(tmp_path):
    theirs = torchvision.models.wide_resnet50_2(weights=None).state_dict()
    torch.save(theirs, tmp_path / "weights.pth")
    torch.manual_seed(1)
    backbone = build_backbone("resnet50")
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    report = load_backbone_weights(backbone, tmp_path / "weights.pth", partial=True)
    for key, value in backbone.state_dict().items():
        fits = theirs[key].shape == value.shape
        assert torch.equal(value, theirs[key] if fits else before[key])
        assert (key in report.loaded) == fits
        assert (key in report.missing) == (not fits)
        assert (key in report.unused) == (not fits)
    assert "layer1.0.conv1.weight" in report.missing
    assert "fc.bias" in report.unused
    lines = report.summary().splitlines()
    assert lines[3].startswith("  left random layer1 (")


def test_partial_loading_of_nothing_is_refused(tmp_path):
    torch.save({"conv1.weight": torch.zeros(3)}, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match="are not weights of resnet18: .*0 of 120 tensors fit"):
        load_backbone_weights(build_backbone("resnet18"), tmp_path / "weights.pth", partial=True)


def test_names_that_nobody_uses(tmp_path):
    file = tmp_path / "weights.pth"
    torch.save({"stem.conv1.weight": torch.zeros(3)}, file)
    message = error_of("resnet18", file)
    for project in ("MoCo", "SwAV", "DINO", "PixPro", "DenseCL", "mmpretrain", "timm"):
        assert project in message


def test_files_with_other_classes(tmp_path):
    file = tmp_path / "weights.pth"
    weights = build_backbone("resnet18").state_dict()
    torch.save({"model": weights, "lr": fractions.Fraction(1, 3)}, file)
    message = error_of("resnet18", file)
    assert "holds more than tensors: if you trust it, load it with weights_only=False" in message


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
    assert "set model.backbone=resnet18, or give another file" in message


def test_the_first_bad_key_is_named(tmp_path):
    file = tmp_path / "weights.pth"
    good = build_backbone("resnet18").state_dict()

    torch.save({k: v for k, v in good.items() if k != "layer1.0.conv2.weight"}, file)
    assert "layer1.0.conv2.weight is missing" in error_of("resnet18", file)

    torch.save({**good, "layer4.2.weight": torch.zeros(1)}, file)
    assert "layer4.2.weight is unexpected" in error_of("resnet18", file)

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
