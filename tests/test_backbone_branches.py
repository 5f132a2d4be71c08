"""Where in a file the backbone is: containers and prefixes of any name, and which of several."""

from __future__ import annotations

import itertools
import pickle

import numpy as np
import pytest
import torch
import torchvision

from models.backbone import build_backbone
from models.backbone_branches import find_backbone, prefixes, state_dicts, words
from models.backbone_layouts import OURS
from models.backbone_weights import load_backbone_weights
from tests.helpers.backbone_files import (
    detectron2,
    numbered,
    prefixed,
    source,
    transformers,
    without_fc,
    zeros,
)

WRAPPERS = ("module.", "_orig_mod.", "model.", "net.", "encoder.", "backbone.", "my.own.")


@pytest.fixture(scope="module")
def weights():
    return source("resnet18").state_dict()


@pytest.fixture(scope="module")
def ours():
    return build_backbone("resnet18").state_dict()


def load(tmp_path, content, name="resnet18"):
    """Load a file; the backbone's first convolution and the report."""
    torch.save(content, tmp_path / "w.pth")
    backbone = build_backbone(name)
    report = load_backbone_weights(backbone, tmp_path / "w.pth")
    return backbone.state_dict(), report


def check_complete(state, weights):
    assert all(torch.equal(value, weights[key]) for key, value in state.items())


def error_of(tmp_path, content, name="resnet18"):
    with pytest.raises(ValueError, match="w.pth: ") as caught:
        load(tmp_path, content, name)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_prefixes_in_any_order(weights, ours, count):
    for parts in itertools.permutations(WRAPPERS, count):
        prefix = "".join(parts)
        found = find_backbone(prefixed(weights, prefix, head__weight=0), ours)
        assert found.prefix == prefix
        assert found.given["layer4.1.conv2.weight"] is not None


@pytest.mark.parametrize(
    "keys",
    [
        *([key] for key in ("state_dict", "model", "ema", "net", "weights", "model_state_dict")),
        ["backbone"],
        ["anything at all"],
        ["classy_state_dict", "base_model", "model", "trunk"],  # VISSL
        ["a", 0, "b"],
    ],
)
def test_containers_of_any_name(tmp_path, weights, keys):
    content = weights
    for key in reversed(keys):
        content = {
            "epoch": 3,
            key: content,
            "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}},
        }
    state, report = load(tmp_path, content)
    check_complete(state, weights)
    assert report.entry == ".".join(map(str, keys))


NAMED = {
    "detectron2": (detectron2, "detectron2's ResNet (no prefix)"),
    "detectron2, a detector": (
        lambda w: prefixed(detectron2(w), "backbone.bottom_up."),
        "detectron2's ResNet (backbone.bottom_up.)",
    ),
    "transformers": (
        lambda w: prefixed(transformers(w), "resnet."),
        "transformers' ResNet (resnet.)",
    ),
    "nn.Sequential": (numbered, "a ResNet in nn.Sequential (no prefix)"),
    "lightly": (
        lambda w: prefixed(numbered(w), "backbone.", projection_head__0__weight=0),
        "a ResNet in nn.Sequential (backbone.)",
    ),
    "VISSL": (lambda w: prefixed(w, "_feature_blocks."), "VISSL (_feature_blocks.)"),
    "a detector of torchvision": (
        lambda w: prefixed(w, "backbone.body.", backbone__fpn__inner_blocks__0__weight=0),
        "a detector of torchvision (backbone.body.)",
    ),
}


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
@pytest.mark.parametrize("case", NAMED)
def test_other_names_of_resnets(tmp_path, case, name):
    theirs = without_fc(source(name).state_dict())
    convert, words = NAMED[case]
    content = convert(theirs)
    assert len(content) >= len(theirs)
    state, report = load(tmp_path, content, name)
    check_complete(state, theirs)
    assert report.layout == words


@pytest.mark.parametrize("wrap", [lambda m: m.features, lambda m: torch.nn.Sequential(m.features)])
def test_a_mobilenet_in_a_sequence(tmp_path, wrap):
    model = source("mobilenet_v2")
    state, report = load(tmp_path, wrap(model).state_dict(), "mobilenet_v2")
    check_complete(state, model.state_dict())
    assert report.layout.startswith("a MobileNetV2 in nn.Sequential (")


def test_detectron2s_pickle(tmp_path, weights, ours):
    """As its tool for torchvision's files writes it."""
    arrays = {key: value.numpy() for key, value in detectron2(weights).items()}
    content = {"model": arrays, "__author__": "torchvision", "matching_heuristics": True}
    (tmp_path / "R-18.pkl").write_bytes(pickle.dumps(content))
    backbone = build_backbone("resnet18")
    report = load_backbone_weights(backbone, tmp_path / "R-18.pkl")
    check_complete(backbone.state_dict(), weights)
    assert report.entry == "model"


def test_arrays_of_the_other_byte_order(weights):
    arrays = {"w": np.array([1.5, 2.5], dtype=">f4"), "text": np.array(["a"])}
    [(entry, tensors)] = state_dicts(arrays)
    assert entry is None
    assert tensors.keys() == {"w"}
    assert tensors["w"].tolist() == [1.5, 2.5]


def test_parameters_and_halves(tmp_path, weights):
    halves = {key: value.half() for key, value in weights.items()}  # also the step counters
    state, _ = load(tmp_path, {k: torch.nn.Parameter(v) for k, v in halves.items()})
    assert state["conv1.weight"].dtype == torch.float32
    check_complete(state, {key: value.to(weights[key].dtype) for key, value in halves.items()})


# Which of two is loaded: the one with the weights, never the one with zeros.
PAIRS = {
    "MoCo, no wrapper": ("encoder_q.", "encoder_k."),
    "MoCo, compiled": ("_orig_mod.encoder_q.", "_orig_mod.encoder_k."),
    "MoCo v3": ("base_encoder.", "momentum_encoder."),
    "BYOL": ("online_net.0.", "target_net.0."),
    "lightly": ("backbone.", "backbone_momentum."),
    "lightly's DINO": ("teacher_backbone.", "student_backbone."),
    "an average beside the model": ("model_ema.module.", "model."),
    "mean teacher": ("teacher.backbone.", "student.backbone."),
}


@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize("case", PAIRS)
def test_the_right_one_of_two_prefixes(tmp_path, weights, case, swap):
    right, wrong = PAIRS[case]
    both = [prefixed(weights, right), prefixed(zeros(weights), wrong)]
    first, second = reversed(both) if swap else both
    state, report = load(tmp_path, {**first, **second})
    check_complete(state, weights)
    assert f"({right})" in report.layout


@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("ema", "model"),
        ("ema_state_dict", "state_dict"),
        ("EMA", "net"),
        ("swa", "backbone"),
        ("teacher", "student"),
        ("model", "best_model"),
        ("state_dict", "weights"),
        ("online", "target"),
    ],
)
def test_the_right_one_of_two_containers(tmp_path, weights, right, wrong, swap):
    both = [(right, weights), (wrong, zeros(weights))]
    state, report = load(tmp_path, dict(reversed(both) if swap else both))
    check_complete(state, weights)
    assert report.entry == right


@pytest.mark.parametrize(("mine", "other"), [("encoder_q.", "encoder_k."), ("", "momentum.")])
def test_a_momentum_encoder_never_stands_in(tmp_path, weights, mine, other):
    """Even if the trained encoder lacks something, and its copy does not."""
    part = {key: value for key, value in weights.items() if key != "bn1.bias"}
    content = {**prefixed(part, mine), **prefixed(weights, other)}
    assert "bn1.bias is missing" in error_of(tmp_path, content)


def test_a_teacher_of_another_architecture(tmp_path, weights):
    """Distillation: the teacher is no average of the student."""
    content = {"teacher": source("resnet34").state_dict(), "student": weights}
    state, report = load(tmp_path, content)
    check_complete(state, weights)
    assert report.entry == "student"


@pytest.mark.parametrize("kind", ["prefixes", "containers"])
def test_two_that_nothing_tells_apart(tmp_path, weights, kind):
    def pair(other):
        if kind == "containers":
            return {"left": weights, "right": other}
        return {**prefixed(weights, "left."), **prefixed(other, "right.")}

    message = error_of(tmp_path, pair(zeros(weights)))
    assert "holds two networks, left and right, and nothing tells which one is meant" in message
    assert message.endswith("save the state_dict of one of them alone")
    state, _ = load(tmp_path, pair(dict(weights)))  # the same numbers twice
    check_complete(state, weights)


def test_a_few_names_that_are_the_same_by_accident(weights, ours):
    """Blocks have names like the whole network's: conv1, bn1."""
    count = prefixes(weights, OURS, set(ours))
    assert count[""] == len(ours)
    assert max(number for prefix, number in count.items() if prefix) < 0.1 * len(ours)
    few = {"stem.conv1.weight": torch.zeros(2), "queue": torch.zeros(2)}
    assert find_backbone(few, ours) is None
    assert find_backbone({}, ours) is None
    assert find_backbone([1, "a"], ours) is None


def test_a_container_that_holds_itself(weights, ours):
    content = {"model": weights}
    content["self"] = content
    assert find_backbone(content, ours).entry == "model"


def test_words():
    assert words("state_dict_ema.module") == {"state", "dict", "ema", "module"}


def test_a_detector_of_torchvision(tmp_path):
    """Names as torchvision makes them, not as we think it does."""
    detection = torchvision.models.detection
    theirs = detection.fcos_resnet50_fpn(weights=None, weights_backbone=None).state_dict()
    state, report = load(tmp_path, theirs, "resnet50")
    check_complete(state, {k.removeprefix("backbone.body."): v for k, v in theirs.items()})
    assert report.layout == "a detector of torchvision (backbone.body.)"


def test_complex_arrays_are_not_taken_for_missing():
    ((_, found),) = state_dicts({"bn.num_batches_tracked": np.ones((), np.complex64)})
    assert found["bn.num_batches_tracked"].is_complex()
