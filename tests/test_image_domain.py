"""The image-domain stage: its settings, and what each method sees and trains."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from aligndet import dist
from aligndet.image_domain import (
    ImageDomainConfig,
    build_image_domain,
    build_trained_backbone,
)
from aligndet.moco import MoCo
from aligndet.simmim import SimMIM, SimMIMConfig
from aligndet.supervised import Supervised
from data.crops import RandomCrop
from data.image_folder import ImageFiles
from data.patch_masks import RandomPatches
from models.backbone import BACKBONES
from models.detector import ModelConfig
from models.grouped_batch_norm import GroupedBatchNorm2d

IMAGES = ImageFiles(Path("none"), ("a/1", "b/2", "c/3"), ("a", "b", "c"), (0, 1, 2))


def test_the_defaults_are_those_of_the_papers():
    moco, supervised = ImageDomainConfig(), ImageDomainConfig(method="supervised")
    simmim = ImageDomainConfig(method="simmim", crop_size=192)
    assert moco.augment == RandomCrop(224, 0.2, colour=True, jitter=0.8, grey=0.2, blur=0.5)
    assert supervised.augment == RandomCrop(224, 0.08, colour=False)
    assert simmim.augment == RandomCrop(192, 0.67, colour=False)
    assert simmim.hide == RandomPatches(192, 32, 0.6)
    assert moco.hide is supervised.hide is None
    assert (moco.spec.views, supervised.spec.views) == (2, 1)
    assert (moco.spec.needs_classes, supervised.spec.needs_classes) == (False, True)
    assert (moco.moco.embedding_width, moco.moco.queue) == (128, 65536)
    assert (moco.moco.temperature, moco.moco.momentum) == (0.2, 0.999)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "mocov2"}, "image.method is 'mocov2'.*did you mean moco_v2"),
        ({"crop_size": 0}, "image.crop_size is 0; it must be at least 1"),
        ({"least_area": 0.0}, "image.least_area is 0.0; it must be"),
        ({"blur": 1.2}, "image.blur is 1.2; it must be at least 0 and at most 1"),
        ({"label_smoothing": -0.1}, "image.label_smoothing is -0.1; it must be at least 0"),
        ({"norm_groups": 0}, "image.norm_groups is 0; it must be at least 1"),
        ({"method": "simmim", "crop_size": 200}, "image.crop_size is 200, which the cells.*as 192"),
        ({"method": "simmim", "crop_size": 32}, "image.crop_size is 32, a single patch"),
        (
            {"method": "simmim", "crop_size": 96, "simmim": SimMIMConfig(patch_size=64)},
            "image.crop_size is 96, which the patches, of 64 pixels, .* multiple, such as 128",
        ),
        (
            {"method": "simmim", "simmim": SimMIMConfig(patch_size=14)},
            "image.simmim.patch_size is 14; give a multiple of 4",
        ),
        ({"probe_val": "x"}, "set both image.probe_train and image.probe_val"),
    ],
)
def test_bad_settings(change, message):
    with pytest.raises(ValueError, match=message):
        ImageDomainConfig(**change)


@pytest.mark.parametrize(
    ("method", "groups", "ranks", "batch", "expected"),
    [
        ("moco_v2", None, 1, 256, 8),
        ("moco_v2", None, 8, 32, 1),
        ("moco_v2", None, 2, 128, 4),
        ("moco_v2", None, 16, 16, 1),
        ("moco_v2", 4, 1, 16, 4),
        ("supervised", None, 1, 256, 1),
        ("supervised", 8, 4, 64, 2),
    ],
)
def test_groups_of_a_process(monkeypatch, method, groups, ranks, batch, expected):
    monkeypatch.setattr(dist, "world_size", lambda: ranks)
    config = ImageDomainConfig(method=method, norm_groups=groups)
    assert config.groups_per_process("resnet18", batch) == expected


@pytest.mark.parametrize("method", ["simmim", "moco_v2", "supervised"])
def test_a_backbone_without_batch_norm_takes_any_batch(method):
    assert ImageDomainConfig(method=method).groups_per_process("swin_t", 1) == 1


@pytest.mark.parametrize("batch", [2, 8, 20, 255])
def test_a_batch_that_cannot_be_split_into_groups(batch):
    message = f"data.batch_size is {batch}; BatchNorm splits it into 8 equal groups of at least 2"
    with pytest.raises(ValueError, match=message):
        ImageDomainConfig().groups_per_process("resnet18", batch)


@pytest.mark.parametrize("name", BACKBONES)
def test_every_backbone_learns_by_every_method(name):
    """Every parameter of the online part gets a gradient, as DDP demands."""
    views = [torch.randn(4, 3, 64, 64) for _ in range(2)]
    batch = {"views": views, "labels": torch.tensor([0, 1, 2, 0])}
    batch["hidden"] = torch.tensor([[[True, False], [False, False]]]).expand(4, 2, 2)
    for method, kind in (("moco_v2", MoCo), ("simmim", SimMIM), ("supervised", Supervised)):
        config = ImageDomainConfig(method=method, norm_groups=2, crop_size=64)
        batch["views"] = views[: config.spec.views]
        task = build_image_domain(ModelConfig(backbone=name), config, 4, IMAGES).train()
        assert isinstance(task, kind)
        losses, _ = task(batch)
        sum(losses.values()).backward()
        trained = [p for p in task.parameters() if p.requires_grad]
        assert all(p.grad is not None for p in trained)
        norms = [m for m in task.backbone.modules() if isinstance(m, GroupedBatchNorm2d)]
        # A Swin has no BatchNorm.
        assert {norm.groups for norm in norms} == (set() if name.startswith("swin") else {2})
        assert task.backbone.training


def test_supervised_weights_have_torchvisions_names():
    task = build_image_domain(
        ModelConfig(backbone="mobilenet_v2"), ImageDomainConfig(method="supervised"), 4, IMAGES
    )
    weights = task.weights()
    assert weights["classifier.1.weight"].shape == (3, 1280)
    assert {"features.0.0.weight", "classifier.1.bias"} <= weights.keys()


def test_a_backbone_can_start_from_weights(tmp_path):
    source = build_trained_backbone("resnet18", 1)
    torch.save(source.state_dict(), tmp_path / "weights.pt")
    model = ModelConfig(backbone="resnet18", backbone_weights=str(tmp_path / "weights.pt"))
    task = build_image_domain(model, ImageDomainConfig(), 16, IMAGES)
    for part in (task.online, task.target):
        assert torch.equal(part.backbone.conv1.weight, source.conv1.weight)
