"""RetinaNet and Faster R-CNN against torchvision's two versions of each, with the same weights."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torchvision.models.detection import FasterRCNN as TorchvisionFasterRCNN
from torchvision.models.detection import (
    fasterrcnn_resnet50_fpn,
    fasterrcnn_resnet50_fpn_v2,
    retinanet_resnet50_fpn,
    retinanet_resnet50_fpn_v2,
)
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou

from models.backbone import build_backbone
from models.faster_rcnn import FasterRCNN, FasterRCNNConfig
from models.retinanet import RetinaNet, RetinaNetConfig
from models.torchvision_weights import (
    faster_rcnn_from_torchvision,
    faster_rcnn_v2_from_torchvision,
    retinanet_from_torchvision,
    retinanet_v2_from_torchvision,
)
from tests.helpers.assertions import same_detections
from tests.helpers.random_norms import randomise_norm
from tests.test_torchvision_weights import SIZES, K, batch, random_targets, raw_outputs

pytestmark = pytest.mark.usefixtures("double_precision")

LIMIT = 30  # proposals per image: the same for both sides, and few, to keep the tests short
EVERYTHING = 1_000_000  # samples per image: nothing is left to chance


def randomise_outputs(model: nn.Module) -> nn.Module:
    """Spread out statistics, scores and boxes: at initialisation all predictions are alike."""
    torch.manual_seed(2)
    spread = {
        "head.classification_head.cls_logits": (0.04, -3.0),
        "head.regression_head.bbox_reg": (0.015, 0.0),
        "rpn.head.cls_logits": (0.15, 0.0),  # their sigmoid turns large logits into ties
        "rpn.head.bbox_pred": (0.2, 0.0),
        "roi_heads.box_predictor.cls_score": (0.15, 0.0),
        "roi_heads.box_predictor.bbox_pred": (0.2, 0.0),
    }
    for name, module in model.named_modules():
        if name in spread:
            std, bias = spread[name]
            weight = module.weight.data.normal_(std=std).flatten(1)
            weight -= weight.mean(dim=1, keepdim=True)  # features are positive: keep classes level
            module.bias.data.normal_(bias, 0.3)
        elif isinstance(module, (nn.BatchNorm2d, nn.GroupNorm)):
            randomise_norm(module)
        elif isinstance(module, (nn.Conv2d, nn.Linear)) and not name.startswith("backbone."):
            nn.init.kaiming_normal_(module.weight)  # their 0.01 leaves nothing after four layers
    return model.eval()


RETINANETS = {
    "v1": (retinanet_resnet50_fpn, RetinaNetConfig.torchvision(), retinanet_from_torchvision),
    "v2": (
        retinanet_resnet50_fpn_v2,
        RetinaNetConfig.torchvision_v2(),
        retinanet_v2_from_torchvision,
    ),
}
FASTER_RCNNS = {
    "v1": (fasterrcnn_resnet50_fpn, FasterRCNNConfig.torchvision(), faster_rcnn_from_torchvision),
    "v2": (
        fasterrcnn_resnet50_fpn_v2,
        FasterRCNNConfig.torchvision_v2(),
        faster_rcnn_v2_from_torchvision,
    ),
}


def retinanet_pair(version: str) -> tuple[nn.Module, RetinaNet]:
    build, config, convert = RETINANETS[version]
    torch.manual_seed(0)
    theirs = randomise_outputs(build(weights=None, weights_backbone=None, num_classes=K))
    ours = RetinaNet(build_backbone("resnet50"), config, K)
    ours.load_state_dict(convert(theirs.state_dict()))
    return theirs, ours.eval()


def faster_rcnn_pair(version: str) -> tuple[nn.Module, FasterRCNN]:
    build, config, convert = FASTER_RCNNS[version]
    torch.manual_seed(0)
    theirs = randomise_outputs(build(weights=None, weights_backbone=None, num_classes=K + 1))
    ours = FasterRCNN(build_backbone("resnet50"), unsampled(config), K)
    ours.load_state_dict(convert(theirs.state_dict()))
    return unsample(theirs), ours.eval()


def unsampled(config: FasterRCNNConfig) -> FasterRCNNConfig:
    samples = {"rpn_samples": EVERYTHING, "roi_samples": EVERYTHING}
    return replace(config, proposals_train=LIMIT, proposals_test=LIMIT, **samples)


def unsample(theirs: nn.Module) -> nn.Module:
    theirs.rpn._post_nms_top_n = {"training": LIMIT, "testing": LIMIT}
    for part in (theirs.rpn, theirs.roi_heads):
        part.fg_bg_sampler.batch_size_per_image = EVERYTHING
    return theirs


def rescaled_losses(theirs, outputs, anchors, targets):
    """Torchvision divides by the positives of each image and averages over images. This divides
    the sum over the batch by the positives of the batch, as the paper and our code do."""
    sums, total = {"classification": 0.0, "bbox_regression": 0.0}, 0
    for n, target in enumerate(targets):
        one = {key: value[n : n + 1] for key, value in outputs.items()}
        losses = theirs.compute_loss([target], one, anchors[n : n + 1])
        positives = 0
        if len(target["boxes"]):
            matched = theirs.proposal_matcher(box_iou(target["boxes"], anchors[n]))
            positives = int((matched >= 0).sum())
        total += positives
        for key, value in losses.items():
            sums[key] = sums[key] + value * max(1, positives)
    return {key: value / max(1, total) for key, value in sums.items()}


@pytest.mark.parametrize("version", RETINANETS)
def test_retinanet_is_torchvisions(version):
    theirs, ours = retinanet_pair(version)
    images = batch(5)
    with torch.no_grad():
        outputs, anchors, counts = raw_outputs(theirs, images, SIZES)
        counts = [9 * count for count in counts]
        split = {key: list(value.split(counts, dim=1)) for key, value in outputs.items()}
        per_level = [list(a.split(counts)) for a in anchors]
        expected = theirs.postprocess_detections(split, per_level, SIZES)
        same_detections(ours(images, torch.tensor(SIZES)), expected, at_least=50)

        alone = random_targets(6, (7, 0, 0))[:1]
        one = {key: value[:1] for key, value in outputs.items()}
        assert ours.config.box_loss == {"v1": "l1", "v2": "giou"}[version]
        losses = ours(images[:1], SIZES[:1], alone)
        for key, value in theirs.compute_loss(alone, one, anchors[:1]).items():
            ours_here = losses[{"classification": "loss_class"}.get(key, "loss_box")]
            torch.testing.assert_close(ours_here, value, rtol=1e-9, atol=1e-9)

        features = ours.pyramid(images)
        our_output, our_anchors = ours.head(features), ours.anchors_for(features)
        for box_counts in ((5, 9, 3), (4, 0, 6), (0, 0, 0)):
            targets = random_targets(7, box_counts)
            reference = rescaled_losses(theirs, outputs, anchors, targets)
            losses = ours.losses(our_output, our_anchors, targets)
            assert (losses["loss_box"] > 0) == (sum(box_counts) > 0)
            for key, their_key in (
                ("loss_class", "classification"),
                ("loss_box", "bbox_regression"),
            ):
                torch.testing.assert_close(losses[key], reference[their_key], rtol=1e-9, atol=1e-9)


def two_stage_losses(theirs, images, features, targets):
    """Torchvision's losses of both stages, with BatchNorm in eval mode; its labels start at 1."""
    targets = [{"boxes": t["boxes"], "labels": t["labels"] + 1} for t in targets]
    for part in (theirs.rpn, theirs.roi_heads):
        part.training = True  # not .train(), which would also switch their BatchNorm
    proposals, losses = theirs.rpn(ImageList(images, SIZES), features, targets)
    losses |= theirs.roi_heads(features, proposals, SIZES, targets)[1]
    theirs.eval()
    return losses


TWO_STAGE_LOSSES = {
    "loss_rpn_objectness": "loss_objectness",
    "loss_rpn_box": "loss_rpn_box_reg",
    "loss_class": "loss_classifier",
    "loss_box": "loss_box_reg",
}


@pytest.mark.parametrize("version", FASTER_RCNNS)
def test_faster_rcnn_is_torchvisions(version):
    theirs, ours = faster_rcnn_pair(version)
    images = batch(8)
    with torch.no_grad():
        features = theirs.backbone(images)
        proposals, _ = theirs.rpn(ImageList(images, SIZES), features)
        assert all(len(p) == LIMIT for p in proposals)
        expected, _ = theirs.roi_heads(features, proposals, SIZES)
        expected = [{**d, "labels": d["labels"] - 1} for d in expected]
        same_detections(ours(images, torch.tensor(SIZES)), expected, at_least=20)
        our_features = ours.pyramid(images)

        for box_counts in ((5, 0, 9), (0, 0, 0)):
            targets = random_targets(9, box_counts)
            reference = two_stage_losses(theirs, images, features, targets)
            losses = ours.losses(our_features, ours.rpn(our_features), torch.tensor(SIZES), targets)
            assert set(losses) == set(TWO_STAGE_LOSSES)
            for key, their_key in TWO_STAGE_LOSSES.items():
                assert (losses[key] > 0) == (sum(box_counts) > 0 or "box" not in key)
                # Without boxes their labels are float32, and so is the objectness loss: its terms,
                # and the tree of sums over 2^13 anchors, each round to 6e-8 of the result.
                double = reference[their_key].dtype == torch.float64
                rtol = 1e-9 if double else 16 * torch.finfo(torch.float32).eps
                theirs_here = reference[their_key].double()
                torch.testing.assert_close(losses[key], theirs_here, rtol=rtol, atol=1e-9)


def test_gradients_of_faster_rcnn_are_torchvisions():
    torch.manual_seed(0)
    backbone = resnet_fpn_backbone(
        backbone_name="resnet18", weights=None, norm_layer=nn.BatchNorm2d, trainable_layers=5
    )
    theirs = unsample(randomise_outputs(TorchvisionFasterRCNN(backbone, K + 1)))
    config = unsampled(FasterRCNNConfig.torchvision())
    ours = FasterRCNN(build_backbone("resnet18", norm="bn"), config, K).eval()
    ours.load_state_dict(faster_rcnn_from_torchvision(theirs.state_dict()))
    images, targets = batch(10), random_targets(11, (5, 0, 3))
    features = theirs.backbone(images)
    sum(two_stage_losses(theirs, images, features, targets).values()).backward()
    sum(ours(images, SIZES, targets).values()).backward()
    their_gradients = faster_rcnn_from_torchvision(
        {name: p.grad for name, p in theirs.named_parameters() if p.grad is not None}
    )
    compared = [name for name, p in ours.named_parameters() if p.grad is not None]
    assert {name.split(".")[0] for name in compared} == {"backbone", "neck", "rpn", "roi_head"}
    for name in compared:
        gradient = ours.get_parameter(name).grad
        error = (gradient - their_gradients[name]).norm()
        assert error <= 1e-9 * their_gradients[name].norm() + 1e-12, name


@pytest.mark.parametrize(
    ("detector", "version", "config", "convert"),
    [(RetinaNet, v, c, f) for v, (_, c, f) in RETINANETS.items()]
    + [(FasterRCNN, v, c, f) for v, (_, c, f) in FASTER_RCNNS.items()],
)
def test_every_key_is_mapped_under_old_names_too(detector, version, config, convert):
    """Their first models were published under other names for the same layers."""
    builders = RETINANETS if detector is RetinaNet else FASTER_RCNNS
    classes = K if detector is RetinaNet else K + 1
    theirs = builders[version][0](weights=None, weights_backbone=None, num_classes=classes)
    state = theirs.state_dict()
    new = convert(state)
    ours = detector(build_backbone("resnet50"), config, K)
    shapes = {key: tensor.shape for key, tensor in new.items()}
    assert shapes == {key: tensor.shape for key, tensor in ours.state_dict().items()}
    if version == "v2":  # it has no older names
        return
    old = {}
    for key, tensor in state.items():
        key = key.replace("_blocks.0.0.", "_blocks.0.")
        key = key.replace("rpn.head.conv.0.0.", "rpn.head.conv.")
        for i in range(4):
            key = key.replace(f"_head.conv.{i}.0.", f"_head.conv.{2 * i}.")
        old[key] = tensor
    assert old.keys() != state.keys()
    assert all(torch.equal(tensor, new[key]) for key, tensor in convert(old).items())
    assert convert(old).keys() == new.keys()


def test_background_becomes_the_last_class():
    weights = {
        "roi_heads.box_predictor.cls_score.weight": torch.arange(4.0)[:, None],
        "roi_heads.box_predictor.bbox_pred.bias": torch.arange(16.0),
    }
    ours = faster_rcnn_from_torchvision(weights)
    assert ours["roi_head.classifier.weight"].flatten().tolist() == [1, 2, 3, 0]
    assert ours["roi_head.box_regression.bias"].tolist() == list(range(4, 16))


@pytest.mark.parametrize(
    ("convert", "key"),
    [
        (retinanet_from_torchvision, "head.classification_head.conv.0.1.weight"),
        (retinanet_from_torchvision, "head.regression_head.bbox_ctrness.weight"),
        (retinanet_v2_from_torchvision, "head.regression_head.conv.0.0.bias"),
        (retinanet_v2_from_torchvision, "rpn.head.cls_logits.weight"),
        (faster_rcnn_from_torchvision, "roi_heads.box_head.5.weight"),
        (faster_rcnn_from_torchvision, "backbone.fpn.inner_blocks.0.1.running_mean"),
        (faster_rcnn_from_torchvision, "roi_heads.mask_head.mask_fcn1.weight"),
        (faster_rcnn_v2_from_torchvision, "roi_heads.box_head.fc6.weight"),
        (faster_rcnn_v2_from_torchvision, "backbone.fpn.layer_blocks.2.0.bias"),
    ],
)
def test_weights_of_another_model_are_an_error(convert, key):
    with pytest.raises(ValueError, match=f"{key} has no counterpart.*resnet50_fpn"):
        convert({key: torch.zeros(1)})
