"""The whole detector against torchvision's, with the same weights."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torchvision.models.detection import FCOS as TorchvisionFCOS
from torchvision.models.detection import fcos_resnet50_fpn
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.image_list import ImageList
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from models.backbone import build_backbone
from models.fcos import FCOS, FCOSConfig
from models.torchvision_weights import fcos_from_torchvision
from tests.helpers.assertions import same_detections
from tests.helpers.random_norms import randomise_norm

pytestmark = pytest.mark.usefixtures("double_precision")

K = 7
SIZES = [(128, 128), (101, 67), (60, 128)]  # true sizes in a batch of 128 x 128
LOSSES = {
    "loss_class": "classification",
    "loss_box": "bbox_regression",
    "loss_centerness": "bbox_ctrness",
}


def randomise(model: nn.Module) -> nn.Module:
    """Spread out statistics, scores and boxes: at initialisation all predictions are alike."""
    torch.manual_seed(1)
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm2d, nn.GroupNorm)):
            randomise_norm(module)
    regression = model.head.regression_head
    for conv, std, bias in (
        (model.head.classification_head.cls_logits, 0.05, -1.0),
        (regression.bbox_reg, 0.05, 2.0),
        (regression.bbox_ctrness, 0.03, 0.5),
    ):
        conv.weight.data.normal_(std=std)
        conv.bias.data.normal_(bias, 0.3)
    return model.eval()


def torchvision_resnet50() -> TorchvisionFCOS:
    return fcos_resnet50_fpn(weights=None, weights_backbone=None, num_classes=K)


def torchvision_resnet18() -> TorchvisionFCOS:
    backbone = resnet_fpn_backbone(
        backbone_name="resnet18",
        weights=None,
        norm_layer=nn.BatchNorm2d,
        returned_layers=[2, 3, 4],
        extra_blocks=LastLevelP6P7(256, 256),
    )
    return TorchvisionFCOS(backbone, K)


@pytest.fixture(scope="module")
def models() -> dict[str, TorchvisionFCOS]:
    """Torchvision's detectors by the name of their backbone; tests do not change them."""
    torch.manual_seed(0)
    return {
        "resnet18": randomise(torchvision_resnet18()).double(),
        "resnet50": randomise(torchvision_resnet50()).double(),
    }


def imported(theirs: nn.Module, name: str, norm: str = "frozen_bn", **changes) -> FCOS:
    config = replace(FCOSConfig.torchvision(), **changes)
    ours = FCOS(build_backbone(name, norm), config, K)
    ours.load_state_dict(fcos_from_torchvision(theirs.state_dict()))
    return ours.eval()


def batch(seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    images = torch.zeros(len(SIZES), 3, 128, 128)
    for image, (height, width) in zip(images, SIZES, strict=True):
        image[:, :height, :width] = torch.randn(3, height, width, generator=generator)
    return images


def random_targets(seed: int, counts: tuple[int, ...]) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    targets = []
    for count, (height, width) in zip(counts, SIZES, strict=True):
        scale = torch.tensor([width, height, width, height]) - 3
        corners = torch.rand(count, 2, 2, generator=generator).sort(dim=1).values.flatten(1)
        boxes = corners * scale + torch.tensor([0.0, 0.0, 3.0, 3.0])
        labels = torch.randint(0, K, (count,), generator=generator)
        targets.append({"boxes": boxes, "labels": labels})
    return targets


def raw_outputs(theirs, images, sizes):
    image_list = ImageList(images, sizes)
    features = list(theirs.backbone(images).values())
    counts = [f.shape[2] * f.shape[3] for f in features]
    return theirs.head(features), theirs.anchor_generator(image_list, features), counts


def torchvision_detections(theirs, images, sizes):
    outputs, anchors, counts = raw_outputs(theirs, images, sizes)
    outputs = {key: list(value.split(counts, dim=1)) for key, value in outputs.items()}
    anchors = [list(a.split(counts)) for a in anchors]
    return theirs.postprocess_detections(outputs, anchors, sizes)


def torchvision_losses(theirs, images, targets):
    outputs, anchors, counts = raw_outputs(theirs, images, SIZES)
    return theirs.compute_loss(targets, outputs, anchors, counts)


# Torchvision derives strides from the padded size, which must be a multiple of 128 to give the
# nominal ones; 128 is.
@pytest.mark.parametrize(
    ("name", "norm"), [("resnet18", "frozen_bn"), ("resnet18", "bn"), ("resnet50", "frozen_bn")]
)
def test_detections_are_torchvisions(models, name, norm):
    theirs = models[name]
    theirs.score_thresh, theirs.detections_per_img = 0.05, 300
    ours = imported(theirs, name, norm, score_threshold=0.05, detections_per_image=300)
    images = batch(0)
    with torch.no_grad():
        expected = torchvision_detections(theirs, images, SIZES)
        found = ours(images, torch.tensor(SIZES))
    assert len(found) == len(SIZES)
    same_detections(found, expected, at_least=50)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_losses_are_torchvisions(models, name):
    theirs = models[name]
    ours = imported(theirs, name)
    images = batch(1)
    for counts in ((5, 9, 3), (4, 0, 6), (0, 0, 0)):
        targets = random_targets(2, counts)
        with torch.no_grad():
            expected = torchvision_losses(theirs, images, targets)
            losses = ours(images, torch.tensor(SIZES), targets)
        assert set(losses) == set(LOSSES)
        for key, their_key in LOSSES.items():
            reference = expected[their_key]
            assert (reference > 0) == (sum(counts) > 0 or key == "loss_class")
            torch.testing.assert_close(losses[key], reference, rtol=1e-9, atol=1e-9)


def test_gradients_are_torchvisions(models):
    theirs = models["resnet18"]
    ours = imported(theirs, "resnet18", norm="bn")
    images, targets = batch(3), random_targets(4, (5, 0, 3))
    sum(torchvision_losses(theirs, images, targets).values()).backward()
    sum(ours(images, SIZES, targets).values()).backward()
    their_gradients = fcos_from_torchvision(
        {name: p.grad for name, p in theirs.named_parameters() if p.grad is not None}
    )
    theirs.zero_grad()
    our_gradients = {name: p.grad for name, p in ours.named_parameters() if p.grad is not None}
    compared = set(our_gradients) & set(their_gradients)
    assert {key.split(".")[0] for key in compared} == {"backbone", "neck", "head"}
    for key in compared:
        error = (our_gradients[key] - their_gradients[key]).norm()
        assert error <= 1e-9 * their_gradients[key].norm() + 1e-12, key


def test_every_key_is_mapped(models):
    ours = FCOS(build_backbone("resnet50"), FCOSConfig.torchvision(), K)
    renamed = fcos_from_torchvision(models["resnet50"].state_dict())
    shapes = {key: tensor.shape for key, tensor in renamed.items()}
    assert shapes == {key: tensor.shape for key, tensor in ours.state_dict().items()}


def test_frozen_and_old_style_weights_load(models):
    theirs = models["resnet18"].state_dict()
    old = {
        key.replace("_blocks.0.0.", "_blocks.0."): tensor
        for key, tensor in theirs.items()
        if not key.endswith("num_batches_tracked")
    }
    assert "backbone.fpn.inner_blocks.0.weight" in old
    ours = FCOS(build_backbone("resnet18"), FCOSConfig.torchvision(), K)
    ours.load_state_dict(fcos_from_torchvision(old))
    weight = theirs["backbone.fpn.inner_blocks.0.0.weight"]
    assert torch.equal(ours.neck.lateral[0].weight, weight)


@pytest.mark.parametrize(
    "key",
    ["head.regression_head.module.weight", "backbone.fpn.extra_blocks.p8.weight", "fc.weight"],
)
def test_an_unknown_key_is_an_error(key):
    with pytest.raises(ValueError, match=f"{key} has no counterpart"):
        fcos_from_torchvision({key: torch.zeros(1)})
