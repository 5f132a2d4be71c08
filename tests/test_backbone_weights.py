"""Other projects' weights in our backbones: what is reported, refused and left out."""

from __future__ import annotations

import copy
import fractions
import json

import pytest
import torch
import torchvision

from models.backbone import BACKBONES, build_backbone
from models.backbone_weights import load_backbone_weights
from tests.helpers.backbone_files import PREFIXED, moco, source, zeros


def save(tmp_path, content):
    torch.save(content, tmp_path / "weights.pth")
    return tmp_path / "weights.pth"


def test_the_summary_lists_what_was_loaded_and_what_was_not(tmp_path):
    file = save(tmp_path, moco(source("resnet18").state_dict()))
    report = load_backbone_weights(build_backbone("resnet18"), file)
    assert report.summary().splitlines() == [
        f"backbone weights from {file}, entry state_dict",
        "  recognised  MoCo v1 or v2, its query encoder (module.encoder_q.)",
        "  loaded      120 of 120 tensors of resnet18",
        "  not used    module.encoder_k (122), module.encoder_q (2), module.queue (1), "
        "module.queue_ptr (1)",
    ]


def test_the_origin_is_not_part_of_the_weights(tmp_path):
    backbone = build_backbone("resnet18")
    names = list(backbone.state_dict())
    report = load_backbone_weights(backbone, save(tmp_path, source("resnet18").state_dict()))
    assert list(backbone.state_dict()) == names
    assert copy.deepcopy(backbone).origin == report
    assert build_backbone("resnet18").origin is None


def test_an_average_may_be_deeper_in_the_file(tmp_path):
    weights = source("resnet18").state_dict()
    average = {"model_ema": {"decay": 0.9, "module": weights}, "model": zeros(weights)}
    backbone = build_backbone("resnet18")
    report = load_backbone_weights(backbone, save(tmp_path, average))
    assert report.entry == "model_ema.module"
    assert torch.equal(backbone.conv1.weight, weights["conv1.weight"])


def test_an_average_without_weights_is_skipped(tmp_path):
    weights = source("resnet18").state_dict()
    file = save(tmp_path, {"model_ema": {"decay": 0.9}, "model": weights})
    assert load_backbone_weights(build_backbone("resnet18"), file).entry == "model"


@pytest.mark.parametrize("layout", ["plain", "moco", "dino", "our detector"])
@pytest.mark.parametrize(("theirs", "ours"), [("resnet34", "resnet18"), ("resnet18", "resnet34")])
def test_another_depth(tmp_path, layout, theirs, ours):
    file = save(tmp_path, PREFIXED[layout][0](source(theirs).state_dict()))
    message = error_of(ours, file)
    assert f"not the weights of {ours}: " in message
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
    for key in theirs:
        if key.endswith("num_batches_tracked"):
            theirs[key] += 5
    torch.manual_seed(1)
    backbone = build_backbone("resnet50")
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    report = load_backbone_weights(backbone, save(tmp_path, theirs), partial=True)
    for key, value in backbone.state_dict().items():
        layer = key.replace("num_batches_tracked", "weight")  # a counter goes with its layer
        fits = theirs[layer].shape == before[layer].shape
        assert torch.equal(value, theirs[key] if fits else before[key])
        assert (key in report.loaded) == fits
        assert (key in report.missing) == (not fits)
        assert (key in report.unused) == (not fits)
    assert "layer1.0.conv1.weight" in report.missing
    assert "fc.bias" in report.unused
    assert {n for n, _, _ in report.mismatched} == {
        n for n in report.missing if not n.endswith("num_batches_tracked")
    }
    lines = report.summary().splitlines()
    assert lines[2].startswith(f"  loaded      {318 - len(report.missing)} of 318 tensors of ")
    assert lines[3].startswith("  left random layer1 (")
    assert lines[4] == (
        f"  other shape {len(report.mismatched)} of these, first layer1.0.conv1.weight: "
        "(128, 64, 1, 1) in the file, (64, 64, 1, 1) here"
    )


def test_a_part_of_a_file_without_step_counters(tmp_path):
    weights = source("resnet18").state_dict()
    old = {k: v for k, v in weights.items() if "num_batches" not in k and "layer4.1" not in k}
    file = save(tmp_path, old)
    report = load_backbone_weights(build_backbone("resnet18"), file, partial=True)
    # A counter is missing only with its layer; those of loaded layers do not count.
    assert set(report.missing) == {name for name in weights if name.startswith("layer4.1.")}
    assert report.mismatched == ()
    assert "  loaded      90 of 102 tensors of resnet18" in report.summary()


@pytest.mark.parametrize(
    ("theirs", "ours"), [("resnet18", "mobilenet_v2"), ("mobilenet_v2", "resnet18")]
)
@pytest.mark.parametrize("partial", [False, True])
def test_another_kind_of_network_does_not_fit_in_part(tmp_path, theirs, ours, partial):
    """Some names are the same (bn1), and step counters have no shape: that is not a fit."""
    file = save(tmp_path, source(theirs).state_dict())
    message = error_of(ours, file, partial)
    total = len(build_backbone(ours).state_dict())
    assert f"(torchvision's names recognised, 0 of {total} tensors fit)" in message
    assert message.endswith(f"; set model.backbone={theirs}, or give another file")


@pytest.mark.parametrize("partial", [False, True])
def test_a_file_of_which_nothing_fits_is_refused(tmp_path, partial):
    message = error_of("resnet18", save(tmp_path, {"conv1.weight": torch.zeros(3)}), partial)
    assert "not the weights of resnet18: conv1.weight is (3,) instead of (64, 3, 7, 7)" in message
    assert message.endswith("0 of 120 tensors fit); give another file")


def test_names_that_nobody_uses(tmp_path):
    file = tmp_path / "weights.pth"
    torch.save({"stem.conv1.weight": torch.zeros(3)}, file)
    message = error_of("resnet18", file)
    for project in ("MoCo", "SwAV", "DINO", "PixPro", "DenseCL", "mmpretrain", "timm"):
        assert project in message
    assert message.endswith("; give another file")


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


def error_of(name: str, file, partial: bool = False) -> str:
    with pytest.raises(ValueError, match="weights.pth|resnet18.pth|none.pth") as caught:
        load_backbone_weights(build_backbone(name), file, partial)
    message = str(caught.value)
    assert str(file) in message
    assert "\n" not in message
    return message


@pytest.mark.parametrize("name", sorted(set(BACKBONES) - {"resnet18"}))
def test_weights_of_another_architecture(tmp_path, name):
    file = tmp_path / "resnet18.pth"
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), file)
    message = error_of(name, file)
    assert f"not the weights of {name}: " in message
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
    assert "no such file of weights; give an existing one" in error_of(
        "resnet18", tmp_path / "none.pth"
    )


@pytest.mark.parametrize("content", [{}, [1, 2], {"epoch": 3}, torch.zeros(2)])
def test_file_without_a_state_dict(tmp_path, content):
    file = tmp_path / "weights.pth"
    torch.save(content, file)
    assert "holds no state_dict" in error_of("resnet18", file)


@pytest.mark.parametrize("name", ["pretrain", "finetune"])
def test_scripts_say_which_weights_they_start_from(tmp_path, write_config, script, capsys, name):
    file = save(tmp_path, moco(source("resnet18").state_dict()))
    changes = {"model__backbone_weights": str(file), "schedule__iterations": 1}
    script(name, "--config", write_config(tmp_path / "run", **changes))
    said = capsys.readouterr().out
    assert f"backbone weights from {file}, entry state_dict\n" in said
    assert "recognised  MoCo v1 or v2, its query encoder (module.encoder_q.)\n" in said
    assert "loaded      120 of 120 tensors of resnet18\n" in said
    if name == "finetune":
        manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
        assert manifest["source"] == str(file)
        assert len(manifest["loaded"]) == 120
        assert "module.queue" in manifest["dropped"]


def test_the_script_loads_what_fits_if_told_to(tmp_path, write_config, script, error_of, capsys):
    weights = source("resnet18").state_dict()
    part = {key: value for key, value in weights.items() if not key.startswith("layer4.1.")}
    changes = {"model__backbone_weights": str(save(tmp_path, part)), "schedule__iterations": 1}
    path = write_config(tmp_path / "run", **changes)
    assert "with model.backbone_partial=true" in error_of("pretrain", "--config", path)
    script("pretrain", "--config", path, "model.backbone_partial=true")
    said = capsys.readouterr().out
    assert "loaded      108 of 120 tensors of resnet18\n" in said
    assert "left random layer4 (12)\n" in said
    # The backbone is still as loaded: it stays frozen in pre-training.
    written = torch.load(tmp_path / "run" / "weights.pt", weights_only=True)["model"]
    assert all(
        torch.equal(written[f"backbone.{key}"], part[key]) for key in part if "fc" not in key
    )


def test_weights_that_init_replaces_are_not_reported_as_loaded(
    tmp_path, write_config, script, capsys
):
    file = save(tmp_path, source("resnet18").state_dict())
    changes = {"model__backbone_weights": str(file), "schedule__iterations": 1}
    script("pretrain", "--config", write_config(tmp_path / "box", **changes))
    capsys.readouterr()
    init = tmp_path / "box" / "weights.pt"
    script("finetune", "--config", write_config(tmp_path / "fine", **changes), "--init", init)
    said = capsys.readouterr().out
    assert f"weights from {init}\n" in said
    assert "backbone weights from" not in said
