"""From weights files to detectors: every weight accounted for, every misfit refused."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
import torch

from aligndet import checkpoint
from aligndet.box_domain import BoxDomain, BoxDomainConfig
from aligndet.transfer import (
    TransferConfig,
    backbone_file,
    backbone_manifest,
    detector_file,
    load_pretrained,
    model_like,
    pretrained_file,
    read_detector,
)
from data.coco import Categories
from data.images import ImageReading
from models import build_detector
from models.backbone import build_backbone
from models.backbone_weights import load_backbone_weights
from tests.helpers import small_detectors
from tests.helpers.small_detectors import model_config

OPTIONS = small_detectors.OPTIONS["fcos"]
CLASSES = Categories((3, 7), ("red", "blue"))
CLASSIFIER = ["head.cls_logits.weight", "head.cls_logits.bias"]
# Of each detector: the classifier, the projector's layers, and the box outputs.
LAYERS = {
    "fcos": ("head.cls_logits", ("0", "2"), ("head.box_regression", "head.centerness")),
    "retinanet": ("head.cls_logits", ("layers.0", "layers.2"), ("head.box_regression",)),
    "faster_rcnn": ("roi_head.classifier", ("0", "2"), ("roi_head.box_regression",)),
    "detr": ("classifier", ("0", "2"), tuple(f"box_regression.{i}" for i in (0, 2, 4))),
}


def tensors(*layers):
    return [f"{layer}.{name}" for layer in layers for name in ("weight", "bias")]


def detector(num_classes=2, seed=9, name="fcos", **changes):
    torch.manual_seed(seed)
    return build_detector(model_config(name, **changes), num_classes)


def randomize(weights, seed=5):
    """Every tensor different from any initialisation."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in weights.values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.1)
        else:
            tensor.fill_(77)
    return weights


@pytest.fixture(scope="module")
def pretrained_of(tmp_path_factory):
    """weights.pt of each detector's box-domain pre-training."""
    paths = {}
    for name in LAYERS:
        task = BoxDomain(detector(1, name=name), name, BoxDomainConfig(embedding_width=8))
        paths[name] = tmp_path_factory.mktemp("pretrained") / "weights.pt"
        content = pretrained_file(randomize(task.weights()), model_config(name))
        checkpoint.save(content, paths[name])
    return paths


@pytest.fixture(scope="module")
def pretrained(pretrained_of):
    return pretrained_of["fcos"]


@pytest.fixture(scope="module")
def fine_tuned(tmp_path_factory):
    model = detector()
    randomize(model.state_dict())
    path = tmp_path_factory.mktemp("finetuned") / "weights.pt"
    reading = ImageReading("apply", (0.0, 4095.0))
    checkpoint.save(detector_file(model, model_config(), CLASSES, (64, 96), reading), path)
    return path


def load(path, model=None, classes=CLASSES, name="fcos", **config):
    model = detector(len(classes), name=name) if model is None else model
    manifest = load_pretrained(model, name, path, classes, TransferConfig(**config))
    return model, manifest


def check_complete(manifest, path, model, before):
    """Each name of either side is listed once, and the values are those the lists promise."""
    saved = torch.load(path, weights_only=True)["model"]
    after = model.state_dict()
    assert sorted(manifest.loaded + manifest.dropped) == sorted(saved)
    assert sorted(manifest.loaded + manifest.fresh) == sorted(after)
    for name in manifest.loaded:
        assert torch.equal(after[name], saved[name]), name
    for name in manifest.fresh:
        assert torch.equal(after[name], before[name]), name


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("name", LAYERS)
def test_pretrained_weights_are_loaded_except_the_projector(pretrained_of, name, keep):
    before = detector(name=name).state_dict()
    model, manifest = load(pretrained_of[name], name=name, keep_box_outputs=keep)
    check_complete(manifest, pretrained_of[name], model, before)
    classifier, projector, box_outputs = LAYERS[name]
    box_outputs = [] if keep else tensors(*box_outputs)
    projector = tensors(*(f"projector.{layer}" for layer in projector))
    assert sorted(manifest.dropped) == sorted(projector + box_outputs)
    assert sorted(manifest.fresh) == sorted(tensors(classifier) + box_outputs)
    assert manifest.source == str(pretrained_of[name])


@pytest.mark.parametrize("name", LAYERS)
def test_files_with_the_projector_under_the_classifiers_names_still_load(
    pretrained_of, tmp_path, name
):
    """As they were written before the projector had names of its own."""
    content = torch.load(pretrained_of[name], weights_only=True)
    classifier = LAYERS[name][0]
    content["model"] = {
        key.replace("projector.", f"{classifier}."): value
        for key, value in content["model"].items()
    }
    checkpoint.save(content, tmp_path / "old.pt")
    before = detector(name=name).state_dict()
    model, manifest = load(tmp_path / "old.pt", name=name)
    check_complete(manifest, tmp_path / "old.pt", model, before)
    assert len(manifest.dropped) == 4
    assert sorted(manifest.fresh) == sorted(tensors(classifier))
    new_model, _ = load(pretrained_of[name], name=name)
    for key, value in new_model.state_dict().items():
        assert torch.equal(model.state_dict()[key], value), key


@pytest.mark.parametrize("keep", [True, False])
def test_one_box_per_class_cannot_be_kept_from_pre_training(pretrained_of, keep):
    options = {**small_detectors.OPTIONS["faster_rcnn"], "class_agnostic": False}
    model = detector(name="faster_rcnn", options=options)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    path = pretrained_of["faster_rcnn"]
    _, manifest = load(path, model, name="faster_rcnn", keep_box_outputs=keep)
    check_complete(manifest, path, model, before)
    assert set(manifest.fresh) == set(tensors("roi_head.classifier", "roi_head.box_regression"))


def test_the_box_outputs_are_kept_by_default(pretrained):
    _, manifest = load(pretrained)
    assert sorted(manifest.fresh) == sorted(CLASSIFIER)


@pytest.mark.parametrize("agnostic", [True, False])
def test_boxes_of_other_classes_are_not_kept(tmp_path, agnostic):
    """A fine-tuned detector with one box per class, and as many classes with other names."""
    options = {**small_detectors.OPTIONS["faster_rcnn"], "class_agnostic": agnostic}
    config = model_config("faster_rcnn", options=options)
    path = tmp_path / "weights.pt"
    checkpoint.save(detector_file(build_detector(config, 2), config, CLASSES, (64, 96)), path)
    others = Categories((3, 7), ("blue", "red"))
    for classes, layers in ((CLASSES, []), (others, ["roi_head.classifier"])):
        model = build_detector(config, 2)
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        _, manifest = load(path, model, classes, "faster_rcnn")
        check_complete(manifest, path, model, before)
        if layers and not agnostic:
            layers = [*layers, "roi_head.box_regression"]
        assert sorted(manifest.dropped) == sorted(manifest.fresh) == sorted(tensors(*layers))


def test_the_fresh_classifier_starts_at_the_prior(pretrained):
    model, _ = load(pretrained)
    expected = torch.full((2,), -4.59512)  # log(0.01 / 0.99)
    torch.testing.assert_close(model.head.cls_logits.bias.detach(), expected)


@pytest.mark.parametrize("keep", [True, False])
def test_a_fine_tuned_classifier_is_kept_for_the_same_classes(fine_tuned, keep):
    before = detector().state_dict()
    model, manifest = load(fine_tuned, keep_box_outputs=keep)
    check_complete(manifest, fine_tuned, model, before)
    assert manifest.dropped == manifest.fresh == []


@pytest.mark.parametrize(
    "classes",
    [
        Categories((1, 2, 3), ("red", "blue", "green")),
        Categories((3, 7), ("blue", "red")),  # as many, but different ones
    ],
)
def test_a_fine_tuned_classifier_is_dropped_for_other_classes(fine_tuned, classes):
    before = detector(len(classes)).state_dict()
    model, manifest = load(fine_tuned, classes=classes)
    check_complete(manifest, fine_tuned, model, before)
    assert sorted(manifest.dropped) == sorted(manifest.fresh) == sorted(CLASSIFIER)


@pytest.mark.parametrize(
    "changes",
    [
        {"backbone": "resnet34"},
        {"backbone": "mobilenet_v2"},
        {"options": {**OPTIONS, "channels": 64}},
        {"options": {**OPTIONS, "num_convs": 2}},
        {"options": {**OPTIONS, "level_scales": False}},
    ],
)
def test_weights_of_another_architecture_are_refused(pretrained, changes):
    model = detector(**changes)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"weights\.pt: does not fit this fcos") as error:
        load(pretrained, model)
    message = str(error.value)
    assert "fcos with resnet18" in message
    assert "set model." in message
    assert "\n" not in message
    for name, tensor in model.state_dict().items():  # nothing was loaded halfway
        assert torch.equal(tensor, before[name]), name


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda m: m.update({"mask_head.weight": torch.zeros(1)}), "mask_head.weight is not part"),
        (lambda m: m.pop("neck.lateral.0.weight"), "neck.lateral.0.weight is missing"),
        (lambda m: m.pop("backbone.bn1.running_var"), "backbone.bn1.running_var is missing"),
        (lambda m: m.update({"head.scales": torch.ones(4)}), r"head.scales has shape \(4,\)"),
    ],
)
def test_a_weight_that_is_unaccounted_for_is_refused(pretrained, tmp_path, change, problem):
    content = torch.load(pretrained, weights_only=True)
    change(content["model"])
    checkpoint.save(content, tmp_path / "odd.pt")
    with pytest.raises(ValueError, match=rf"odd\.pt: does not fit this fcos \({problem}"):
        load(tmp_path / "odd.pt")


def test_last_pt_cannot_be_init(tmp_path):
    """It names weights by branch and must not be mistaken for weights.pt."""
    task = BoxDomain(detector(1), "fcos", BoxDomainConfig(embedding_width=8))
    content = {"model": task.state_dict(), "step": 1, "config": {"model": {}}, "optimizer": {}}
    checkpoint.save({**content, "processes": 1}, tmp_path / "last.pt")
    with pytest.raises(ValueError, match=r"last\.pt: .*weights\.pt"):
        load(tmp_path / "last.pt")


def test_manifest_is_saved_and_summed_up(pretrained, tmp_path):
    model, manifest = load(pretrained)
    manifest.save(tmp_path / "manifest.json")
    saved = json.loads((tmp_path / "manifest.json").read_text())
    assert saved == {
        "source": str(pretrained),
        "loaded": manifest.loaded,
        "dropped": manifest.dropped,
        "fresh": manifest.fresh,
    }
    lines = manifest.summary().splitlines()
    assert str(pretrained) in lines[0]
    backbone = sum(name.startswith("backbone.") for name in model.state_dict())
    assert f"backbone ({backbone})" in lines[1]
    assert "projector (4)" in lines[2]
    assert "head.cls_logits (2)" in lines[3]


def test_manifest_of_a_start_from_the_backbone_alone(tmp_path):
    model = detector()
    names = sorted(model.state_dict())
    at_random = backbone_manifest(model)
    assert sorted(at_random.fresh) == names
    assert at_random.summary().startswith("no weights: a random start\n")
    source = tmp_path / "resnet18.pth"
    weights = build_backbone("resnet18").state_dict()
    torch.save({**weights, "fc.weight": torch.zeros(3, 512)}, source)
    load_backbone_weights(model.backbone, source)
    manifest = backbone_manifest(model)
    assert sorted(manifest.loaded + manifest.fresh) == names
    assert all(name.startswith("backbone.") for name in manifest.loaded)
    assert not any(name.startswith("backbone.") for name in manifest.fresh)
    assert manifest.dropped == ["fc.weight"]
    assert manifest.summary().startswith(f"weights from {source}\n")


def test_manifest_of_a_part_of_the_backbone(tmp_path):
    model = detector()
    weights = build_backbone("resnet18").state_dict()
    part = {key: value for key, value in weights.items() if not key.startswith("layer4.1.")}
    torch.save(part, tmp_path / "part.pth")
    load_backbone_weights(model.backbone, tmp_path / "part.pth", partial=True)
    manifest = backbone_manifest(model)
    assert sorted(manifest.loaded + manifest.fresh) == sorted(model.state_dict())
    fresh = {name for name in manifest.fresh if name.startswith("backbone.")}
    assert fresh == {f"backbone.{key}" for key in weights if key.startswith("layer4.1.")}


def test_a_fine_tuned_detector_is_rebuilt_from_its_file_alone(fine_tuned):
    model, categories, sides, reading = read_detector(fine_tuned)
    assert reading == ImageReading("apply", (0.0, 4095.0))
    assert categories == CLASSES
    assert sides == (64, 96)
    saved = torch.load(fine_tuned, weights_only=True)["model"]
    assert saved.keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, saved[name]) for name, tensor in model.state_dict().items())


def test_a_detector_saved_before_an_option_existed_is_rebuilt(fine_tuned, tmp_path):
    content = checkpoint.load(fine_tuned, "--checkpoint")
    del content["config"]["backbone_partial"], content["reading"]
    checkpoint.save(content, tmp_path / "old.pt")
    model, *_, reading = read_detector(tmp_path / "old.pt")
    assert reading == ImageReading()
    assert model.state_dict().keys() == content["model"].keys()


def test_a_backbone_alone_cannot_be_init(tmp_path):
    weights = build_backbone("resnet18").state_dict()
    content = backbone_file(weights, model_config("fcos"), ())
    checkpoint.save(content, tmp_path / "image.pt")
    with pytest.raises(
        ValueError, match=r"image\.pt: holds only a backbone.* model\.backbone_weights"
    ):
        load_pretrained(detector(), "fcos", tmp_path / "image.pt", CLASSES, TransferConfig())


def test_pretrained_weights_are_not_a_detector(pretrained):
    with pytest.raises(ValueError, match=r"weights\.pt: not a fine-tuned detector \(stage box\)"):
        read_detector(pretrained)


def test_the_backbone_alone_can_be_taken(pretrained):
    model = detector()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    source = checkpoint.load(pretrained, "--init")["model"]
    manifest = load_pretrained(
        model, "fcos", pretrained, CLASSES, TransferConfig(backbone_only=True)
    )
    for name, tensor in model.state_dict().items():
        expected = source[name] if name.startswith("backbone.") else before[name]
        assert torch.equal(tensor, expected), name
    assert sorted(manifest.loaded + manifest.dropped) == sorted(source)
    assert sorted(manifest.loaded + manifest.fresh) == sorted(before)


def test_parts_of_the_file_can_be_left_out(pretrained):
    before = detector().state_dict()
    model, manifest = load(pretrained, leave_out=("neck.", "head.cls_tower."))
    check_complete(manifest, pretrained, model, before)
    left_out = {name for name in manifest.fresh if not name.startswith("head.cls_logits.")}
    outputs = set(tensors(*LAYERS["fcos"][2]))
    parts = {n for n in before if n.startswith(("neck.", "head.cls_tower."))}
    assert left_out - outputs == parts
    assert parts <= set(manifest.dropped)


@pytest.mark.parametrize("prefix", ["head.class_tower.", ""])
def test_leaving_out_what_is_not_there_is_refused(pretrained, prefix):
    with pytest.raises(ValueError, match=r"transfer\.leave_out names .*its parts are .*neck\."):
        load(pretrained, leave_out=(prefix,))


def changed(path, folder, **entries):
    """The file at `path` with other entries; dots lead to those of sections."""
    content = torch.load(path, weights_only=True)
    del content["checksum"]
    for key, value in entries.items():
        *sections, last = key.split("__")
        place = content
        for section in sections:
            place = place[section]
        place[last] = value
    torch.save(content, folder / "odd.pt")
    return folder / "odd.pt"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_precision_are_converted(fine_tuned, tmp_path, dtype):
    weights = torch.load(fine_tuned, weights_only=True)["model"]
    cast = {k: v.to(dtype) if v.is_floating_point() else v for k, v in weights.items()}
    path = changed(fine_tuned, tmp_path, model=cast)
    for model in (load(path)[0], read_detector(path).detector):
        for name, tensor in model.state_dict().items():
            assert tensor.dtype == weights[name].dtype
            assert torch.equal(tensor, cast[name].to(tensor.dtype)), name


BIAS = "neck.lateral.0.bias"


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (torch.ones(32, dtype=torch.int64), "numbers of int64, not float32"),
        (torch.ones(1, 32), r"has shape \(1, 32\), not \(32,\)"),
        (torch.ones(31), r"has shape \(31,\), not \(32,\)"),
        (torch.ones(32, dtype=torch.bool), "numbers are bool"),
        (torch.full((32,), float("nan")), "32 NaN or infinite values"),
        ("x", "which is not a tensor"),
    ],
)
@pytest.mark.parametrize("read", [load, read_detector])
def test_a_weight_of_another_kind_is_refused(fine_tuned, tmp_path, read, value, words):
    weights = torch.load(fine_tuned, weights_only=True)["model"]
    path = changed(fine_tuned, tmp_path, model={**weights, BIAS: value})
    with pytest.raises(ValueError, match=rf"odd\.pt: .*{words}"):
        read(path)


@pytest.mark.parametrize(
    ("key", "number"),
    [("channels", 33), *((key, 10**n) for key in ("channels", "num_convs") for n in (6, 9))],
)
@pytest.mark.parametrize("read", [lambda path: model_like(path, {}), read_detector])
def test_a_network_larger_than_its_weights_is_not_built(fine_tuned, tmp_path, read, key, number):
    path = changed(fine_tuned, tmp_path, **{f"config__options__{key}": number})
    with pytest.raises(ValueError, match=r"odd\.pt: its weights are not those of the "):
        read(path)


@pytest.mark.parametrize("key", ["encoder_layers", "decoder_layers", "queries"])
def test_a_transformer_larger_than_its_weights_is_not_built(pretrained_of, tmp_path, key):
    path = changed(pretrained_of["detr"], tmp_path, **{f"config__options__{key}": 10**9})
    with pytest.raises(ValueError, match=r"odd\.pt: its weights are not those of the "):
        model_like(path, {})


@pytest.mark.parametrize("name", LAYERS)
def test_the_model_of_a_file_of_pre_training(pretrained_of, name):
    made = model_like(pretrained_of[name], {})
    assert (made["detector"], made["backbone"]) == (name, "resnet18")


def test_the_model_of_the_state_of_a_run(tmp_path):
    state = {"model": {}, "optimizer": {}, "step": 1, "processes": 1}
    config = {"model": asdict(model_config())}
    checkpoint.save({**state, "config": config}, tmp_path / "last.pt")
    assert model_like(tmp_path / "last.pt", {})["detector"] == "fcos"
    config["model"]["detector"] = "yolo"
    checkpoint.save({**state, "config": config}, tmp_path / "last.pt")
    with pytest.raises(
        ValueError, match=r"last\.pt: the model in its config cannot be used: model"
    ):
        model_like(tmp_path / "last.pt", {})
