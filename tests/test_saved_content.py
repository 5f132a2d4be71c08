"""What files of ours must hold: each entry with wrong types, shapes, numbers and keys."""

from __future__ import annotations

import copy
from dataclasses import asdict

import pytest
import torch

from aligndet.saved_content import check_content, saved_model_config
from models.detector import ModelConfig
from tests.helpers.small_detectors import model_config

MODEL = {"w": torch.ones(2, 3), "bn.running_var": torch.ones(2), "n": torch.tensor(3)}
CONFIG = asdict(model_config("fcos"))
FILES = {
    "image": {"model": MODEL, "stage": "image", "config": {"backbone": "resnet18"}, "classes": []},
    "box": {"model": MODEL, "stage": "box", "config": CONFIG},
    "detector": {
        "model": MODEL,
        "stage": "detector",
        "config": CONFIG,
        "categories": {"ids": [1, "b"], "names": ["x", "x"]},
        "input_sides": [64, 96],
        "reading": {"exif": "apply", "value_range": (0.0, 4095.0)},
        "AP": 12.5,
    },
    "state": {
        "model": MODEL,
        "step": 0,
        "optimizer": {"state": {}, "param_groups": []},
        "scaler": {},
        "config": {},
        "inputs": {"data.train": "a1", "--init": None},
        "processes": 2,
    },
}
OPTIONAL = {"classes", "reading", "AP", "scaler", "inputs"}


@pytest.mark.parametrize("kind", FILES)
def test_what_a_run_writes(kind):
    check_content(FILES[kind])
    check_content({**FILES[kind], "newer": object()})  # of a newer version
    check_content({k: v for k, v in FILES[kind].items() if k not in OPTIONAL})  # of an older one


@pytest.mark.parametrize(
    ("kind", "key"),
    [(kind, key) for kind, content in FILES.items() for key in content if key not in OPTIONAL],
)
def test_an_entry_that_is_missing_is_named(kind, key):
    content = {k: v for k, v in FILES[kind].items() if k != key}
    if key in ("stage", "optimizer"):  # then it is another kind of file, which callers refuse
        check_content(content)
        return
    with pytest.raises(ValueError, match=f"no entry '{key}'"):
        check_content(content)


@pytest.mark.parametrize("content", [None, [], "x", torch.ones(2), {}, {"w": torch.ones(1)}])
def test_something_else(content):
    with pytest.raises(ValueError, match=r"not a checkpoint of this project \(no entry 'model'\)"):
        check_content(content)


NAN, INF = float("nan"), float("inf")
WRONG_WEIGHTS = {
    "is 3, not a mapping": 3,
    "holds 7, which is not a tensor": {7: torch.ones(2)},
    "holds 'w', which is not a tensor": {"w": [1.0]},
    "holds w, whose numbers are complex64": {"w": torch.ones(2, dtype=torch.complex64)},
    "holds w, whose numbers are bool": {"w": torch.ones(2, dtype=torch.bool)},
    "holds w, whose numbers are float8_e5m2": {"w": torch.ones(2).to(torch.float8_e5m2)},
    r"diverged \(w has 1 NaN or infinite values \(of 2\)\)": {"w": torch.tensor([1.0, NAN])},
    r"diverged \(w has 2 NaN or infinite values \(of 2\)\)": {"w": torch.tensor([INF, -INF])},
    r"diverged \(bn.running_var has 1 negative": {"bn.running_var": torch.tensor([1.0, -1.0])},
}


@pytest.mark.parametrize("words", WRONG_WEIGHTS)
def test_wrong_weights(words):
    with pytest.raises(ValueError, match=f"its entry 'model' .*{words}"):
        check_content({**FILES["box"], "model": WRONG_WEIGHTS[words]})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_real_numbers_of_any_precision(dtype):
    check_content({**FILES["box"], "model": {"w": torch.ones(2, dtype=dtype)}})


WRONG = [
    ("image", "stage", ["pool", None, 3, ["box"], torch.ones(2)]),
    ("image", "config", [None, {}, {"backbone": "resnet19"}, {"backbone": ["resnet18"]}]),
    ("image", "classes", ["abc", [1], {"a": 1}, None]),
    ("box", "config", [None, [], "x", {"detector": "fcos"}, torch.ones(2)]),
    ("detector", "categories", [None, {}, {"ids": [1], "names": []}, {"ids": [], "names": []}]),
    ("detector", "categories", [{"ids": [1, 1], "names": ["a", "b"]}, {"ids": "a", "names": "b"}]),
    ("detector", "categories", [{"ids": [True], "names": ["a"]}, {"ids": [1.0], "names": ["a"]}]),
    ("detector", "categories", [{"ids": [[1]], "names": ["a"]}, {"ids": [1], "names": [2]}]),
    ("detector", "input_sides", [[64], [64, 96, 1], "64", [0, 9], [-1, 9], [64.0, 96.0], None]),
    ("detector", "input_sides", [[True, True], [10**9, 10**9], {0: 64, 1: 96}, torch.ones(2)]),
    ("detector", "reading", [None, {"exif": "turn"}, {"newer": 1}, {"value_range": [1, 0]}]),
    ("detector", "AP", [None, "x", NAN, True, torch.ones(1)]),
    ("state", "step", [-1, 1.5, "1", None, True, torch.tensor(1)]),
    ("state", "optimizer", [None, [], 3]),
    (
        "state",
        "config",
        [None, "x", {"a": torch.ones(2)}, {"a": {"b": [torch.ones(1)]}}, {None: 1}],
    ),
    ("state", "processes", [0, True, 1.0, None]),
    ("state", "scaler", [None, 3]),
    ("state", "inputs", [None, {3: "a"}, {"a": 3}, ["a"]]),
    ("state", "checksum", [None, 3, "x", {}]),
]


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [(kind, key, value) for kind, key, values in WRONG for value in values],
)
def test_wrong_entries(kind, key, value):
    with pytest.raises(ValueError, match=f"its entry '{key}' ") as caught:
        check_content({**FILES[kind], key: value})
    assert "\n" not in str(caught.value)


def test_a_config_without_the_keys_of_newer_versions():
    old = {key: CONFIG[key] for key in ("detector", "backbone", "options")}
    assert saved_model_config(old) == ModelConfig("fcos", "resnet18", options=CONFIG["options"])


def test_the_path_of_the_backbones_weights_does_not_matter():
    assert saved_model_config({**CONFIG, "backbone_weights": 3}).backbone_weights is None


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("newer", 1, "has the key 'newer', which this version does not know: update this project"),
        ("detector", "yolo", "cannot be used: model.detector is 'yolo', which is unknown"),
        ("backbone", "resnet19", "did you mean resnet18"),
        ("norm", "group", "model.norm is 'group'"),
        ("frozen_stages", 6, "model.frozen_stages is 6; it must be at least 0 and at most 5"),
        ("frozen_stages", True, "model.frozen_stages is True; it must be a whole number"),
        ("options", [], "model.options is .*; it must be a section"),
        ("options.channels", "x", "model.options.channels is 'x'; it must be a whole number"),
        ("options.newer", 1, "has the key 'newer', which this version does not know"),
    ],
)
def test_a_config_that_is_unusable_here(key, value, words):
    config = copy.deepcopy(CONFIG)
    section, _, name = key.rpartition(".")
    (config[section] if section else config)[name] = value
    with pytest.raises(ValueError, match=words):
        saved_model_config(config)
