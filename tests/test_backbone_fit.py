"""Weights that fit by name, but have other shapes, other numbers or impossible ones."""

from __future__ import annotations

import re

import pytest
import torch

from models.backbone import build_backbone
from models.backbone_fit import first_bad_value, first_problem, fitting_part, same_weights
from models.backbone_weights import load_backbone_weights


@pytest.fixture
def ours():
    return {
        "conv1.weight": torch.ones(2, 3),
        "bn1.running_var": torch.ones(2),
        "bn1.weight": torch.ones(2),
        "bn1.num_batches_tracked": torch.tensor(0),
    }


def test_what_fits(ours):
    assert first_problem(ours, ours) is None
    assert fitting_part(ours, ours) == ours
    old = {key: value for key, value in ours.items() if "num_batches" not in key}
    assert first_problem(old, ours) is None
    halves = {key: value.half() for key, value in ours.items()}
    assert first_problem(halves, ours) is None
    assert fitting_part(halves, ours).keys() == ours.keys()
    other_modules = {**ours, "fc.weight": torch.ones(1)}
    assert first_problem(other_modules, ours) is None


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"bn1.weight": None}, "bn1.weight is missing"),
        ({"bn1.weight": torch.ones(3)}, "bn1.weight is (3,) instead of (2,)"),
        (
            {"bn1.weight": torch.ones(2, dtype=torch.int8)},
            "bn1.weight is torch.int8 instead of floating-point numbers",
        ),
        ({"bn1.other": torch.ones(1)}, "bn1.other is unexpected"),
    ],
)
def test_the_first_problem(ours, change, problem):
    given = {key: value for key, value in {**ours, **change}.items() if value is not None}
    assert first_problem(given, ours) == problem
    name = problem.split()[0]
    assert name not in fitting_part(given, ours)
    # The step counter goes with the weight of its layer.
    assert ("bn1.num_batches_tracked" in fitting_part(given, ours)) == (name == "bn1.other")


INFINITE = float("inf")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("conv1.weight", float("nan"), "conv1.weight has 2 NaN or infinite values (of 6)"),
        ("conv1.weight", INFINITE, "conv1.weight has 2 NaN or infinite values (of 6)"),
        ("bn1.running_var", -INFINITE, "bn1.running_var has 1 NaN or infinite values (of 2)"),
        ("bn1.running_var", -0.5, "bn1.running_var has 1 negative variances (of 2)"),
        ("conv1.weight", -0.5, None),
        ("bn1.running_var", 0.0, None),
    ],
)
def test_bad_values(ours, name, value, words, dtype):
    given = {key: tensor.to(dtype) for key, tensor in ours.items()}
    given[name][..., 1] = value
    assert first_bad_value(given) == words


def test_bad_values_of_8_bits():
    assert first_bad_value({"w": torch.tensor([float("nan"), 1.0]).to(torch.float8_e5m2)})
    assert first_bad_value({"w": torch.ones(2).to(torch.float8_e5m2)}) is None


@pytest.mark.parametrize("value", [float("nan"), INFINITE])
def test_a_diverged_backbone_is_refused(tmp_path, value):
    weights = build_backbone("resnet18").state_dict()
    weights["fc.weight"] = torch.full((2, 2), value)  # is not loaded
    torch.save(weights, tmp_path / "w.pth")
    load_backbone_weights(build_backbone("resnet18"), tmp_path / "w.pth")
    weights["layer4.0.conv1.weight"] = weights["layer4.0.conv1.weight"].clone()
    weights["layer4.0.conv1.weight"][0] = value
    torch.save(weights, tmp_path / "w.pth")
    backbone = build_backbone("resnet18")
    before = {key: tensor.clone() for key, tensor in backbone.state_dict().items()}
    for partial in (False, True):
        with pytest.raises(ValueError, match=r"layer4\.0\.conv1\.weight has 2304 NaN") as caught:
            load_backbone_weights(backbone, tmp_path / "w.pth", partial)
        assert str(tmp_path / "w.pth") in str(caught.value)
        assert "training that diverged; give an earlier file" in str(caught.value)
    assert same_weights(backbone.state_dict(), before)


def test_a_refused_file_shows_three_of_its_keys(tmp_path):
    def refused(content):
        torch.save(content, tmp_path / "w.pth")
        with pytest.raises(ValueError, match="w.pth: ") as caught:
            load_backbone_weights(build_backbone("resnet18"), tmp_path / "w.pth")
        return str(caught.value)

    names = ["a.w", "b.w", "c.w", "d.w"]
    other = {name: torch.zeros(1) for name in names}
    words = "not the weights of resnet18: its tensors are a.w, b.w, c.w, ... (4 in all), which are"
    assert words in refused({"model": other, "best": torch.zeros(1)})
    assert "its tensors are a.w, b.w, which are" in refused(dict(list(other.items())[:2]))
    assert "its tensors are conv1.weight, bn1.weight, bn1.bias, ... (216 in all)" in refused(
        build_backbone("resnet34").state_dict()
    )
    assert "holds no state_dict (but epoch, loss)" in refused({"epoch": 3, "loss": 0.1})


@pytest.mark.parametrize(
    ("counter", "words"),
    [
        (torch.zeros(1, dtype=torch.int64), r"is \(1,\) instead of \(\)"),
        (torch.tensor(True), "is torch.bool instead of a whole number"),
        (torch.tensor(1 + 1j), "is torch.complex64 instead of a whole number"),
    ],
)
def test_a_step_counter_may_be_missing_but_not_wrong(counter, words):
    ours = {"bn.weight": torch.ones(2), "bn.num_batches_tracked": torch.tensor(0)}
    assert first_problem({"bn.weight": torch.ones(2)}, ours) is None
    given = {"bn.weight": torch.ones(2), "bn.num_batches_tracked": counter}
    assert re.search(words, first_problem(given, ours))


def test_negative_step_counters_are_bad_values():
    assert first_bad_value({"bn.num_batches_tracked": torch.tensor(3)}) is None
    bad = first_bad_value({"bn.num_batches_tracked": torch.tensor(-3)})
    assert bad == "bn.num_batches_tracked has counted a negative number of steps"
