"""Exported detectors: each format finds what PyTorch finds, in batches and sizes it was not traced
with; what the command prints and refuses; the example in docs/ runs without this project."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from torch import nn

from aligndet import checkpoint
from aligndet import export_formats as formats
from aligndet.export_check import BOX_TOLERANCE, Comparison, by_image, matches
from aligndet.export_formats import FORMATS, example, least_side
from aligndet.export_graph import DIVISOR, FINDERS
from aligndet.predict import Predictor
from aligndet.transfer import detector_file
from data.coco import Categories
from data.normalise import normalise
from data.views import pad_images
from models import build_detector
from models.detector import DETECTORS
from tests.helpers.random_norms import randomise_norm
from tests.helpers.small_detectors import OPTIONS, model_config

EXAMPLE = Path(__file__).resolve().parent.parent / "docs" / "run_exported.py"
K = 3
CLASSES = Categories((3, 7, 8), ("red", "blue", "big dog"))
# (height, width) of the images of each batch; they were traced with two images of other sizes.
BATCHES = [[(140, 201)], [(133, 150), (170, 129)]]
FEW = {  # candidates of each level, fewer than there are: the limit must count
    "fcos": {"topk_candidates": 50, "prior": 0.3},
    "retinanet": {"topk_candidates": 50, "prior": 0.2},
    "faster_rcnn": {"topk_test": 60, "proposals_test": 80, "class_agnostic": False},
    "mask_rcnn": {"topk_test": 60, "proposals_test": 80, "mask_class_agnostic": False},
    "detr": {"min_size": 0.0},
}


def detector_config(name, **options):
    return model_config(name, options={**OPTIONS[name], "score_threshold": 0.02, **options})


def small_detector(name, **options):
    """With outputs that differ from place to place, as those of a trained one do."""
    torch.manual_seed(0)
    model = build_detector(detector_config(name, **FEW[name], **options), K).eval()
    for part in model.modules():
        if isinstance(part, (nn.BatchNorm2d, nn.GroupNorm)):
            randomise_norm(part)
    last = ("cls_logits", "classifier", "objectness", "box_regression", "predictor", "centerness")
    with torch.no_grad():
        for key, weight in model.named_parameters():
            if name != "detr" and weight.ndim > 1 and any(part in key for part in last):
                weight *= 10
    return model


def batch(sizes, seed=1):
    """Images of these sizes, uint8, and the same padded as little as they can be."""
    source = torch.Generator().manual_seed(seed)
    images = [torch.randint(0, 256, (3, *s), generator=source, dtype=torch.uint8) for s in sizes]
    padded, true_sizes = pad_images(images, divisor=1)
    return images, padded, true_sizes


@torch.no_grad()
def in_pytorch(model, images):
    padded, sizes = pad_images(images)
    return model(normalise(padded, sizes), sizes)


def assert_same(found, expected):
    """The same detections. float32 has a precision of 6e-8, errors add up over some 20 layers of
    sums of a few hundred products, and boxes have up to 200 px: 1e-3 px and 1e-4 are hundreds of
    times what is to be expected, and thousands of times less than what another result would be."""
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.keys() == theirs.keys()
        (_, a), (_, b) = matches(ours, theirs)
        assert len(a) == len(ours["scores"]) == len(theirs["scores"]) > 5
        assert all(torch.diff(ours["scores"]) <= 0)
        for key, bound in (("boxes", 1e-3), ("scores", 1e-4), ("masks", 1e-4), ("labels", 0)):
            if key in ours:
                assert ours[key].dtype == theirs[key].dtype
                assert (ours[key][a] - theirs[key][b]).abs().max() <= bound


@pytest.fixture(scope="module")
def detectors():
    return {name: small_detector(name) for name in DETECTORS}


@pytest.fixture(scope="module")
def onnx_files(detectors):
    """Of each detector, exported once for all tests."""
    return {name: FORMATS["onnx"].make(model, {}) for name, model in detectors.items()}


def check_all(run, model):
    for sizes in BATCHES:
        images, padded, true_sizes = batch(sizes)
        assert padded.shape[2:] != example(model)[0].shape[2:]
        found = run(padded, true_sizes)
        assert [x.ndim for x in found] == [2, 1, 1, 1, 3][: len(found)]
        assert len({len(x) for x in found}) == 1
        assert_same(by_image(found, len(sizes)), in_pytorch(model, images))


@pytest.mark.parametrize("name", DETECTORS)
def test_onnx_finds_what_pytorch_finds(detectors, onnx_files, name):
    run = FORMATS["onnx"].load(onnx_files[name])
    assert not any(part.training for part in detectors[name].modules())  # dropout stays off
    check_all(run, detectors[name])
    images, padded, sizes = batch([(37, 90)])  # a map of one cell
    assert_same(by_image(run(padded, sizes), 1), in_pytorch(detectors[name], images))


@pytest.mark.parametrize("name", DETECTORS)
def test_torchscript_finds_what_pytorch_finds(detectors, name):
    run = FORMATS["torchscript"].load(FORMATS["torchscript"].make(detectors[name], {}))
    check_all(run, detectors[name])
    images, padded, sizes = batch([(37, 90)])
    assert_same(by_image(run(padded, sizes), 1), in_pytorch(detectors[name], images))


def test_torch_export_finds_what_pytorch_finds():
    """Of Mask R-CNN, which has most parts; each detector takes many seconds here, and the command
    compares all of them (`docs/export.md`)."""
    model = small_detector("mask_rcnn")
    check_all(formats.without_gradient(formats.program_of(model).module()), model)


def test_a_file_of_torch_export_finds_what_pytorch_finds(detectors):
    content = FORMATS["torch_export"].make(detectors["detr"], {"is": "kept"})
    check_all(FORMATS["torch_export"].load(content), detectors["detr"])
    extra = {formats.ABOUT: ""}
    torch.export.load(io.BytesIO(content), extra_files=extra)
    assert json.loads(extra[formats.ABOUT]) == {"is": "kept"}


@pytest.mark.parametrize("layer", ["rois", "masks"])
def test_layers_that_get_no_boxes(layer):
    """They are those with a norm, of which onnxruntime's stop at an empty map."""
    none = {"rois": {"rpn_min_size": 1000.0}, "masks": {"min_size": 1000.0}}[layer]
    model = small_detector("mask_rcnn", **none)
    run = FORMATS["onnx"].load(FORMATS["onnx"].make(model, {}))
    images, padded, sizes = batch(BATCHES[1])
    assert [len(found["boxes"]) for found in in_pytorch(model, images)] == [0, 0]
    assert [tuple(x.shape) for x in run(padded, sizes)] == [(0, 4), (0,), (0,), (0,), (0, 14, 14)]


def test_what_is_in_the_padding_does_not_matter(detectors, onnx_files):
    run = FORMATS["onnx"].load(onnx_files["fcos"])
    _, padded, sizes = batch(BATCHES[1])
    found = run(padded, sizes)
    padded[0, :, 133:] = 200
    padded[0, :, :, 150:] = 100
    assert all(torch.equal(a, b) for a, b in zip(run(padded, sizes), found, strict=True))


def test_differences_are_seen():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 20, 20], [5, 5, 9, 9]])
    theirs = {"boxes": boxes, "scores": torch.tensor([0.9, 0.5, 0.4]), "labels": torch.arange(3)}
    order = [1, 0, 2]
    ours = {key: value[order].clone() for key, value in theirs.items()}
    ours["boxes"][0, 2] += 0.25
    ours["scores"][1] -= 0.005
    ours["labels"][2] = 0
    result = Comparison()
    result.add(ours, theirs)
    assert (result.matched, result.unmatched, result.box) == (2, 2, 0.25)
    assert result.score == pytest.approx(0.005, abs=1e-6)
    assert not result.same
    result.matched = 1000
    assert result.same
    empty = {key: value[:0] for key, value in theirs.items()}
    result.add(empty, empty)
    result.add(empty, theirs)
    assert (result.matched, result.unmatched, result.images) == (1000, 5, 3)


@pytest.fixture(scope="module")
def run_directory(tmp_path_factory, write_config, detectors):
    """A run of FCOS whose config names the validation images of the dataset of conftest."""
    folder = tmp_path_factory.mktemp("export") / "run"
    write_config(folder).rename(folder.parent / "config.yaml")
    folder.mkdir()
    (folder.parent / "config.yaml").rename(folder / "config.yaml")
    config = detector_config("fcos", **FEW["fcos"])
    checkpoint.save(
        detector_file(detectors["fcos"], config, CLASSES, (100, 150)), folder / "weights.pt"
    )
    return folder


def test_the_command_and_the_example(run_directory, tmp_path, script, capsys):
    """What the example prints for a photograph is what `Predictor` finds."""
    script("aligndet.export", run_directory, "--format", "onnx")
    shown = capsys.readouterr().out
    file = run_directory / "detector.onnx"
    assert f"{file}: {file.stat().st_size / 1e6:.1f} MB" in shown
    assert "on validation images: 5 images, " in shown  # one of them has no object
    assert "largest difference: boxes " in shown
    assert "ms per image in PyTorch, " in shown
    (entry,) = onnx.load(file).metadata_props
    assert entry.key == formats.ABOUT
    assert json.loads(entry.value)["category_ids"] == [3, 7, 8]
    pixels = np.random.default_rng(0).integers(0, 256, (230, 170, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    copy = tmp_path / "run_exported.py"
    copy.write_bytes(EXAMPLE.read_bytes())  # where nothing of this project is
    command = [sys.executable, "-I", copy, file, tmp_path / "photo.png"]
    printed = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    found = Predictor(run_directory, "cpu")(tmp_path / "photo.png")
    shown = found["scores"] >= 0.3
    lines = printed.stdout.splitlines()
    assert len(lines) == shown.sum() > 3
    for line, label, score, box in zip(
        lines, found["labels"][shown], found["scores"][shown], found["boxes"][shown], strict=True
    ):
        assert line.startswith(CLASSES.names[label] + " ")
        *_, s, x1, y1, x2, y2 = map(float, line.removeprefix(CLASSES.names[label]).split())
        assert s == pytest.approx(float(score), abs=1e-3)
        assert [x1, y1, x2, y2] == pytest.approx(box.tolist(), abs=0.1)


def test_without_validation_images_noise_is_compared(run_directory, tmp_path, script, capsys):
    """A weights file elsewhere, and a format without more packages."""
    (tmp_path / "weights.pt").write_bytes((run_directory / "weights.pt").read_bytes())
    output = tmp_path / "out" / "fcos.ts"
    script(
        "aligndet.export", tmp_path / "weights.pt", "--format", "torchscript", "--output", output
    )
    assert "on noise, as no validation images of the run exist: 4 images" in capsys.readouterr().out
    extra = {formats.ABOUT: ""}
    torch.jit.load(output, _extra_files=extra)
    about = json.loads(extra[formats.ABOUT])
    assert (about["short_side"], about["max_side"]) == (100, 150)
    assert about["classes"] == list(CLASSES.names)


def test_what_is_refused(run_directory, tmp_path, error_of, monkeypatch):
    command = ("aligndet.export", run_directory, "--format")
    weights = run_directory / "weights.pt"
    before = weights.read_bytes()
    assert "is a folder" in error_of(*command, "onnx", "--output", tmp_path)
    assert "the weights themselves" in error_of(*command, "torchscript", "--output", weights)
    assert weights.read_bytes() == before
    assert "no such file; give RUN an" in error_of("aligndet.export", "x.pt", "--format", "onnx")
    message = error_of(*command, "torch_export")
    assert "short side of 100 px" in message
    assert "FCOS needs at least 129; use --format onnx or torchscript" in message
    monkeypatch.setattr(formats.importlib.util, "find_spec", lambda name: None)
    message = error_of(*command, "onnx")
    assert "needs onnx and onnxruntime" in message
    assert message.endswith("pip install onnx onnxruntime")


def test_an_export_that_differs_is_not_written(run_directory, tmp_path, error_of, monkeypatch):
    def shifted(content):
        run = formats.load_torchscript(content)
        return lambda *inputs: (lambda boxes, *rest: (boxes + 2 * BOX_TOLERANCE, *rest))(
            *run(*inputs)
        )

    changed = FORMATS["torchscript"]._replace(load=shifted)
    monkeypatch.setitem(FORMATS, "torchscript", changed)
    output = tmp_path / "out.ts"
    command = ("aligndet.export", run_directory, "--format", "torchscript", "--output", output)
    assert "finds other objects than in PyTorch" in error_of(*command)
    assert not output.exists()


def test_a_swin_is_refused_in_a_sentence(tmp_path, error_of):
    config = detector_config("fcos", **FEW["fcos"])
    config = model_config("fcos", backbone="swin_t", options=config.options)
    content = detector_file(build_detector(config, K), config, CLASSES, (64, 96))
    checkpoint.save(content, tmp_path / "weights.pt")
    message = error_of("aligndet.export", tmp_path, "--format", "torchscript")
    assert "its backbone, swin_t, shifts its windows" in message


def test_every_detector_can_be_exported():
    assert set(FINDERS) == {detector for detector, _ in DETECTORS.values()}
    assert pad_images.__defaults__[0] == DIVISOR
    assert least_side(small_detector("detr")) == 33
