"""Mask R-CNN against torchvision's two versions of it, with the same weights."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torchvision.models.detection import MaskRCNN as TorchvisionMaskRCNN
from torchvision.models.detection import maskrcnn_resnet50_fpn, maskrcnn_resnet50_fpn_v2
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import paste_masks_in_image

from models.backbone import build_backbone
from models.mask_head import paste_masks
from models.mask_rcnn import MaskRCNN, MaskRCNNConfig
from models.torchvision_weights import (
    mask_rcnn_from_torchvision,
    mask_rcnn_v2_from_torchvision,
)
from tests.helpers.assertions import same_detections
from tests.test_torchvision_anchor_weights import (
    TWO_STAGE_LOSSES,
    randomise_outputs,
    unsample,
    unsampled,
)
from tests.test_torchvision_weights import SIZES, K, batch, random_targets

pytestmark = pytest.mark.usefixtures("double_precision")

VERSIONS = {
    "v1": (maskrcnn_resnet50_fpn, MaskRCNNConfig.torchvision(), mask_rcnn_from_torchvision),
    "v2": (
        maskrcnn_resnet50_fpn_v2,
        MaskRCNNConfig.torchvision_v2(),
        mask_rcnn_v2_from_torchvision,
    ),
}
PROPOSALS, DETECTIONS = 4, 12  # per image: masks take most of the time of these tests
LOSSES = {**TWO_STAGE_LOSSES, "loss_mask": "loss_mask"}


def randomise(theirs: nn.Module) -> nn.Module:
    """Spread out masks too, with values on both sides of one half in each."""
    theirs = unsample(randomise_outputs(theirs))
    theirs.rpn._post_nms_top_n = {"training": PROPOSALS, "testing": PROPOSALS}
    theirs.roi_heads.detections_per_img = DETECTIONS
    output = theirs.roi_heads.mask_predictor.mask_fcn_logits
    weight = output.weight.data.normal_().flatten(1)
    weight -= weight.mean(dim=1, keepdim=True)  # features are positive
    output.bias.data.normal_(std=0.3)
    return theirs


def pair(version: str) -> tuple[nn.Module, MaskRCNN]:
    build, config, convert = VERSIONS[version]
    torch.manual_seed(0)
    theirs = randomise(build(weights=None, weights_backbone=None, num_classes=K + 1))
    ours = MaskRCNN(build_backbone("resnet50"), few_proposals(config), K)
    ours.load_state_dict(convert(theirs.state_dict()))
    return theirs, ours.eval()


def few_proposals(config: MaskRCNNConfig) -> MaskRCNNConfig:
    few = {"proposals_train": PROPOSALS, "proposals_test": PROPOSALS}
    return replace(unsampled(config), detections_per_image=DETECTIONS, **few)


def masked_targets(seed: int, counts: tuple[int, ...]) -> list[dict[str, torch.Tensor]]:
    """Boxes with triangles in them."""
    targets = random_targets(seed, counts)
    for target, (height, width) in zip(targets, SIZES, strict=True):
        y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
        left, top, right, bottom = target["boxes"].t()[:, :, None, None]
        across, down = (x - left) / (right - left), (y - top) / (bottom - top)
        inside = (across >= 0) & (down <= 1) & (down >= across)
        target["masks"] = inside.to(torch.uint8)
    return targets


def their_losses(theirs, images, features, targets):
    """Torchvision's losses, with BatchNorm in eval mode; its labels start at 1."""
    targets = [{**target, "labels": target["labels"] + 1} for target in targets]
    for part in (theirs.rpn, theirs.roi_heads):
        part.training = True  # not .train(), which would also switch their BatchNorm
    proposals, losses = theirs.rpn(ImageList(images, SIZES), features, targets)
    losses |= theirs.roi_heads(features, proposals, SIZES, targets)[1]
    theirs.eval()
    return losses


def pasted(found: dict[str, torch.Tensor], size: tuple[int, int]) -> torch.Tensor:
    """Torchvision's detections of an image as masks (D, H, W)."""
    return (paste_masks_in_image(found["masks"], found["boxes"], size) > 0.5)[:, 0]


def same_masks(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor], size) -> None:
    """Detections of an image, which are the same in all but their order, have the same masks."""
    distance = (ours["boxes"][:, None] - theirs["boxes"]).abs().amax(dim=2)
    distance += (ours["labels"][:, None] != theirs["labels"]) * 1000.0
    order = distance.argmin(dim=1)
    assert order.unique().numel() == len(order)
    torch.testing.assert_close(ours["masks"], theirs["masks"][order, 0], rtol=0, atol=1e-8)
    masks = paste_masks(ours["masks"], ours["boxes"], size)
    assert torch.equal(masks.bool(), pasted(theirs, size)[order])
    above = (ours["masks"] > 0.5).flatten(1)
    assert (above.any(dim=1) & ~above.all(dim=1)).sum() > 4  # both values in one mask


@pytest.mark.parametrize("version", VERSIONS)
def test_mask_rcnn_is_torchvisions(version):
    theirs, ours = pair(version)
    images = batch(8)
    with torch.no_grad():
        features = theirs.backbone(images)
        proposals, _ = theirs.rpn(ImageList(images, SIZES), features)
        assert all(len(p) == PROPOSALS for p in proposals)
        expected, _ = theirs.roi_heads(features, proposals, SIZES)
        expected = [{**d, "labels": d["labels"] - 1} for d in expected]
        our_features = ours.pyramid(images)
        found = ours.detections(our_features, ours.rpn(our_features), torch.tensor(SIZES))
        same_detections(found, expected, at_least=8)
        for of_image in zip(found, expected, SIZES, strict=True):
            same_masks(*of_image)

        targets = masked_targets(9, (5, 0, 9))
        reference = their_losses(theirs, images, features, targets)
        losses = ours.losses(our_features, ours.rpn(our_features), torch.tensor(SIZES), targets)
        assert set(losses) == set(LOSSES)
        for key, their_key in LOSSES.items():
            assert losses[key] > 0
            torch.testing.assert_close(losses[key], reference[their_key], rtol=1e-9, atol=1e-9)


def test_gradients_are_torchvisions():
    torch.manual_seed(0)
    backbone = resnet_fpn_backbone(
        backbone_name="resnet18", weights=None, norm_layer=nn.BatchNorm2d, trainable_layers=5
    )
    theirs = randomise(TorchvisionMaskRCNN(backbone, K + 1))
    config = few_proposals(MaskRCNNConfig.torchvision())
    ours = MaskRCNN(build_backbone("resnet18", norm="bn"), config, K).eval()
    ours.load_state_dict(mask_rcnn_from_torchvision(theirs.state_dict()))
    images, targets = batch(10), masked_targets(11, (5, 0, 3))
    sum(their_losses(theirs, images, theirs.backbone(images), targets).values()).backward()
    sum(ours(images, SIZES, targets).values()).backward()
    their_gradients = mask_rcnn_from_torchvision(
        {name: p.grad for name, p in theirs.named_parameters() if p.grad is not None}
    )
    compared = [name for name, p in ours.named_parameters() if p.grad is not None]
    parts = {"backbone", "neck", "rpn", "roi_head", "mask_head"}
    assert {name.split(".")[0] for name in compared} == parts
    for name in compared:
        gradient = ours.get_parameter(name).grad
        error = (gradient - their_gradients[name]).norm()
        assert error <= 1e-9 * their_gradients[name].norm() + 1e-12, name


@pytest.mark.parametrize("version", VERSIONS)
def test_every_key_is_mapped_under_old_names_too(version):
    """Their first model was published under other names for the same layers."""
    build, config, convert = VERSIONS[version]
    with torch.device("meta"):
        theirs = build(weights=None, weights_backbone=None, num_classes=K + 1)
        ours = MaskRCNN(build_backbone("resnet50"), config, K)
    state = theirs.state_dict()
    new = convert(state)
    shapes = {key: tensor.shape for key, tensor in new.items()}
    assert shapes == {key: tensor.shape for key, tensor in ours.state_dict().items()}
    if version == "v2":  # it has no older names
        return
    old = {}
    for key, tensor in state.items():
        key = key.replace("_blocks.0.0.", "_blocks.0.").replace(
            "rpn.head.conv.0.0.", "rpn.head.conv."
        )
        for i in range(4):
            key = key.replace(f"mask_head.{i}.0.", f"mask_head.mask_fcn{i + 1}.")
        old[key] = tensor
    assert "roi_heads.mask_head.mask_fcn4.bias" in old
    assert {k: v.shape for k, v in convert(old).items()} == shapes


def test_old_names_lead_to_the_same_layers():
    names = [("mask_fcn1", "0.0"), ("mask_fcn2", "1.0"), ("mask_fcn3", "2.0"), ("mask_fcn4", "3.0")]
    for old, new in names:
        keys = [f"roi_heads.mask_head.{name}.weight" for name in (old, new)]
        first, second = (mask_rcnn_from_torchvision({key: torch.zeros(1)}) for key in keys)
        assert first.keys() == second.keys()


def test_the_mask_of_the_background_is_dropped():
    key = "roi_heads.mask_predictor.mask_fcn_logits.bias"
    for convert in (mask_rcnn_from_torchvision, mask_rcnn_v2_from_torchvision):
        ours = convert({key: torch.arange(4.0)})
        assert ours["mask_head.predictor.bias"].tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("convert", "key"),
    [
        (mask_rcnn_from_torchvision, "roi_heads.mask_head.0.1.running_mean"),
        (mask_rcnn_from_torchvision, "roi_heads.box_head.5.weight"),
        (mask_rcnn_v2_from_torchvision, "roi_heads.mask_head.0.0.bias"),
        (mask_rcnn_v2_from_torchvision, "roi_heads.mask_head.mask_fcn1.weight"),
        (mask_rcnn_v2_from_torchvision, "head.regression_head.bbox_ctrness.weight"),
    ],
)
def test_weights_of_another_model_are_an_error(convert, key):
    with pytest.raises(ValueError, match=f"{key} has no counterpart.*maskrcnn_resnet50_fpn"):
        convert({key: torch.zeros(1)})
