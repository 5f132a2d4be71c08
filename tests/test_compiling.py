"""The layers as graphs: how many there are, and that they compute the same.

Graphs are traced, but run by the operations they consist of, so results are equal bit by bit.
"""

import copy

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter

from aligndet.box_domain import BoxDomain, BoxDomainConfig
from aligndet.compiling import check_compiler, compile_layers
from aligndet.fine_tuning import FineTuning
from models.backbone_base import StagedBackbone
from models.detector import DETECTORS, ModelConfig, build_detector
from models.mask_rcnn import MaskRCNN, MaskRCNNConfig
from tests.helpers.narrow_backbones import narrow_backbones
from tests.helpers.small_detectors import OPTIONS

CPU = torch.device("cpu")
MASK_RCNN = MaskRCNNConfig(channels=32, box_features=64, mask_convs=1, score_threshold=0.0)
SIZES = ((288, 320), (320, 300), (352, 288))


@pytest.fixture(autouse=True)
def forget_graphs():
    """Graphs are kept by code, which all tests share."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class TinyBackbone(StagedBackbone):
    """One layer per stage: tracing takes time for each."""

    channels = (4, 8, 8, 8)

    def __init__(self):
        super().__init__()
        widths = zip((3, 4, 4, 8, 8), (4, 4, 8, 8, 8), strict=True)
        self.layers = nn.ModuleList(nn.Conv2d(a, b, 3, 2, padding=1) for a, b in widths)

    @property
    def stages(self):
        return [[layer] for layer in self.layers]

    def forward(self, images):
        maps = [images]
        for layer in self.layers:
            maps.append(layer(maps[-1]).relu())
        return maps[2:]


def task(name, stage):
    torch.manual_seed(0)
    build, config = DETECTORS[name]
    detector = build(TinyBackbone(), config(**OPTIONS[name]), num_classes=2)
    if stage == "finetune":
        return FineTuning(detector)
    return BoxDomain(detector, name, BoxDomainConfig())


def batch(stage, images, height, width):
    pixels = torch.randn(images, 3, height, width, generator=torch.Generator().manual_seed(1))
    boxes = torch.tensor([[10.0, 10, 60, 60], [30, 20, width - 10, height - 10]])
    view = {
        "images": pixels,
        "image_sizes": [(height, width)] * images,
        "boxes": [boxes] * images,
        "targets": [{"boxes": boxes, "labels": torch.tensor([0, 1])}] * images,
    }
    return view if stage == "finetune" else (view, view)


@pytest.mark.parametrize(
    ("name", "stage", "graphs"),
    [
        ("retinanet", "finetune", 1),
        ("fcos", "box", 3),  # the frozen backbone, the online and the target branch
        ("faster_rcnn", "box", 3),
    ],
)
def test_sizes_share_their_graphs_and_losses_and_gradients_stay(name, stage, graphs):
    plain, counter = task(name, stage), CompileCounter()
    compiled = copy.deepcopy(plain)
    names = list(compiled.state_dict())
    compile_layers(compiled, "model", counter)
    assert list(compiled.state_dict()) == names
    for images, size in zip((2, 3, 2), SIZES, strict=True):
        losses = []
        for model in (plain, compiled):
            model.zero_grad()
            torch.manual_seed(0)  # of the samples
            losses.append(model(batch(stage, images, *size))[0])
            torch.stack(list(losses[-1].values())).sum().backward()
        torch.testing.assert_close(*losses, rtol=0, atol=0)
        for a, b in zip(plain.parameters(), compiled.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad, rtol=0, atol=0)
    assert counter.frame_count == graphs


def test_mask_rcnn_is_one_graph():
    torch.manual_seed(0)
    plain, counter = MaskRCNN(TinyBackbone(), MASK_RCNN, num_classes=2).eval(), CompileCounter()
    compiled = copy.deepcopy(plain)
    compile_layers(compiled, "model", counter)
    view = batch("finetune", 2, 160, 192)
    with torch.no_grad():
        found = [model(view["images"], view["image_sizes"]) for model in (plain, compiled)]
    for one, other in zip(*found, strict=True):
        assert all(torch.equal(one[key], other[key]) for key in ("boxes", "masks"))
        assert len(one["masks"]) > 0
    assert counter.frame_count == 1


def test_a_swin_stays_as_it_is_while_the_rest_becomes_graphs():
    torch.manual_seed(0)
    options = {"channels": 32, "num_convs": 1}
    config = ModelConfig("retinanet", "swin_t", frozen_stages=0, options=options)
    with narrow_backbones():
        plain, counter = FineTuning(build_detector(config, num_classes=2)), CompileCounter()
    compiled = copy.deepcopy(plain)
    compile_layers(compiled, "model", counter)
    given = batch("finetune", 2, 96, 160)
    losses = [model(given)[0] for model in (plain, compiled)]
    torch.testing.assert_close(*losses, rtol=0, atol=0)
    assert counter.frame_count >= 1


def test_none_leaves_everything_as_it_is():
    model, counter = task("faster_rcnn", "finetune"), CompileCounter()
    compile_layers(model, "none", counter)
    model(batch("finetune", 1, 64, 96))
    assert counter.frame_count == 0


def test_a_missing_compiler_is_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    for variable in ("CC", "CXX"):
        monkeypatch.delenv(variable, raising=False)
    check_compiler("none", CPU)
    with pytest.raises(
        ValueError, match=r"needs a C\+\+ compiler, but there is no g\+\+.*compile=none"
    ):
        check_compiler("model", CPU)
    with pytest.raises(ValueError, match="needs a C compiler, but there is no gcc"):
        check_compiler("model", torch.device("cuda"))
    compiler = tmp_path / "mine"
    compiler.write_text("#!/bin/sh\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", "mine")
    check_compiler("model", CPU)
    monkeypatch.setenv("CXX", "other")
    with pytest.raises(ValueError, match="but CXX names other; install"):
        check_compiler("model", CPU)


def test_a_gpu_needs_triton(monkeypatch):
    monkeypatch.setattr("aligndet.compiling.shutil.which", lambda name: name)
    monkeypatch.setattr("aligndet.compiling.importlib.util.find_spec", lambda name: None)
    check_compiler("model", CPU)
    with pytest.raises(ValueError, match="needs the package triton on a GPU"):
        check_compiler("model", torch.device("cuda"))
