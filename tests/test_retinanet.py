import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torchvision.ops import generalized_box_iou_loss, sigmoid_focal_loss

from models.assign import IGNORE
from models.backbone import build_backbone
from models.coders import boxes_to_deltas, deltas_to_boxes
from models.retinanet import RetinaNet, RetinaNetConfig, RetinaNetHead
from tests.helpers.assertions import assert_finite_gradients
from tests.helpers.labelled_batch import NOTHING, SIZES, TARGETS, K, batch, target

LEVELS = ((16, 20), (8, 10), (4, 5), (2, 3), (1, 2))  # of a batch of 128 x 160
STRIDES = (8, 16, 32, 64, 128)
B = 9
LEVEL_SIZES = [h * w * B for h, w in LEVELS]
A = sum(LEVEL_SIZES)
SMALL = RetinaNetConfig(channels=64, num_convs=2)


def small_retinanet(config: RetinaNetConfig = SMALL) -> RetinaNet:
    torch.manual_seed(0)
    return RetinaNet(build_backbone("resnet18"), config, K)


BOXES = [t["boxes"] for t in TARGETS]


def test_shapes_and_order():
    model = small_retinanet()
    features = model.pyramid(batch())
    output = model.head(features)
    anchors = model.anchors_for(features)
    assert [tuple(f.shape) for f in features] == [(2, 64, h, w) for h, w in LEVELS]
    assert output.logits.shape == (2, A, K)
    assert output.deltas.shape == (2, A, 4)
    assert anchors.shape == (A, 4)
    assert model.strides == STRIDES
    size = (anchors[:, 2:] - anchors[:, :2]).prod(dim=1).sqrt()
    for stride, part in zip(STRIDES, size.split(LEVEL_SIZES), strict=True):
        expected = 4 * stride * 2 ** (torch.arange(3) / 3)
        torch.testing.assert_close(part.view(-1, 3), expected.expand(len(part) // 3, 3))


def test_a_prediction_comes_from_the_cell_of_its_anchor():
    model = small_retinanet()
    features = [torch.zeros(1, 64, h, w) for h, w in LEVELS]
    probe = nn.Conv2d(64, B * K, 1, bias=False)
    nn.init.zeros_(probe.weight)
    probe.weight.data[4 * K + 1] = 1.0  # anchor 4 (square, middle size) of the cell, class 1
    model.head.cls_logits = probe
    features[1][0, :, 3, 7] = 1.0
    logits = model.head.logits_from(features)
    anchors = model.anchors_for(features)
    assert logits[0].count_nonzero() == 1
    index, label = (logits[0] > 0).nonzero()[0].tolist()
    assert label == 1
    half = 4 * 16 * 2 ** (1 / 3) / 2
    expected = torch.tensor([7 * 16 - half, 3 * 16 - half, 7 * 16 + half, 3 * 16 + half])
    torch.testing.assert_close(anchors[index], expected)


def test_parts_make_the_whole():
    model = small_retinanet()
    features = model.pyramid(batch())
    output = model.head(features)
    cls_features, box_features = model.head.towers(features)
    assert torch.equal(output.logits, model.head.logits_from(cls_features))
    assert torch.equal(output.deltas, model.head.deltas_from(box_features))


def test_another_layer_can_replace_the_classifier():
    model = small_retinanet()
    features = model.pyramid(batch())
    model.head.cls_logits = nn.Conv2d(64, B * 32, 1)
    cls_features, _ = model.head.towers(features)
    assert model.head.logits_from(cls_features).shape == (2, A, 32)


def test_initialisation():
    torch.manual_seed(0)
    head = RetinaNetHead(RetinaNetConfig(), 20)
    for name, conv in head.named_modules():
        if isinstance(conv, nn.Conv2d):
            assert conv.weight.std().item() == pytest.approx(0.01, rel=0.1), name
            bias = -math.log(99) if name == "cls_logits" else 0
            torch.testing.assert_close(conv.bias, torch.full_like(conv.bias, bias))
    logits = head([torch.randn(1, 256, 4, 4)]).logits
    assert logits.sigmoid().mean().item() == pytest.approx(0.01, rel=0.1)


@pytest.mark.parametrize("kind", ["l1", "smooth_l1", "giou"])
def test_losses_equal_a_slow_loop(kind):
    model = small_retinanet(replace(SMALL, box_loss=kind, smooth_l1_beta=0.5))
    anchors = model.anchors_for([torch.zeros(1, 64, h, w) for h, w in LEVELS])
    matched = model.assign(anchors, BOXES)
    assert matched.shape == (2, A)
    assert (matched == IGNORE).any()
    logits, deltas = torch.randn(2, A, K), torch.randn(2, A, 4) * 0.5
    positives, cost_class, cost_box = 0, 0.0, 0.0
    for n, t in enumerate(TARGETS):
        for a in range(A):
            index = int(matched[n, a])
            one_hot = torch.zeros(K)
            if index >= 0:
                positives += 1
                one_hot[t["labels"][index]] = 1
                goal = t["boxes"][index][None]
                error = (deltas[n, a] - boxes_to_deltas(anchors[a], goal[0])).abs()
                if kind == "l1":
                    cost_box += error.sum().item()
                elif kind == "smooth_l1":
                    cost_box += sum(e * e if e < 0.5 else e - 0.25 for e in error.tolist())
                else:
                    box = deltas_to_boxes(anchors[a], deltas[n, a])[None]
                    cost_box += generalized_box_iou_loss(box, goal).item()
            if index != IGNORE:
                cost_class += sigmoid_focal_loss(logits[n, a], one_hot, reduction="sum").item()
    assert positives > 20
    loss_class = model.class_loss(logits, matched, [t["labels"] for t in TARGETS])
    assert loss_class.item() == pytest.approx(cost_class / positives, rel=1e-4)
    losses = model.box_losses(deltas, anchors, matched, BOXES)
    assert list(losses) == ["loss_box"]
    assert losses["loss_box"].item() == pytest.approx(cost_box / positives, rel=1e-4)


def test_perfect_deltas_cost_nothing():
    model = small_retinanet()
    anchors = model.anchors_for([torch.zeros(1, 64, h, w) for h, w in LEVELS])
    matched = model.assign(anchors, BOXES)
    goal = torch.stack([b[m.clamp(min=0)] for b, m in zip(BOXES, matched, strict=True)])
    deltas = boxes_to_deltas(anchors, goal)
    loss = model.box_losses(deltas, anchors, matched, BOXES)["loss_box"]
    # Each of a box's four deltas is below 2, and its logarithm may be rounded to a neighbour where
    # it is computed for another number of boxes.
    assert loss.item() == pytest.approx(0, abs=4 * 2 * torch.finfo(torch.float32).eps)


def test_small_boxes_have_an_anchor_unless_low_quality_matches_are_off():
    boxes = [torch.tensor([[4.0, 44, 10, 50], [0, 0, 160, 20]]), torch.zeros(0, 4)]
    features = [torch.zeros(1, 64, h, w) for h, w in LEVELS]
    model = small_retinanet()
    matched = model.assign(model.anchors_for(features), boxes)
    assert set(matched[0].tolist()) >= {0, 1}
    assert set(matched[1].tolist()) == {-1}
    strict = small_retinanet(replace(SMALL, low_quality_matches=False))
    assert not (strict.assign(strict.anchors_for(features), boxes) >= 0).any()


@pytest.mark.parametrize("targets", [TARGETS, [TARGETS[0], NOTHING[0]], NOTHING])
@pytest.mark.parametrize("norm", ["none", "gn"])
def test_every_trained_parameter_gets_a_finite_gradient(targets, norm):
    model = small_retinanet(replace(SMALL, tower_norm=norm)).train()
    losses = model(batch(), SIZES, targets)
    assert list(losses) == ["loss_class", "loss_box"]
    assert all(v.shape == () and v.isfinite() for v in losses.values())
    assert (losses["loss_box"] > 0) == (targets is not NOTHING)
    sum(losses.values()).backward()
    assert_finite_gradients(model)
    if targets is NOTHING:
        assert not model.head.box_regression.weight.grad.any()


@pytest.mark.usefixtures("double_precision")  # one image and two: other convolutions
def test_an_image_without_boxes_adds_only_background():
    model = small_retinanet().eval()
    both = model(batch(), SIZES, [TARGETS[0], NOTHING[0]])
    alone = model(batch()[:1], SIZES[:1], TARGETS[:1])
    torch.testing.assert_close(both["loss_box"], alone["loss_box"])
    assert both["loss_class"] > alone["loss_class"]


def test_a_planted_prediction_is_found():
    model = small_retinanet()
    features = [torch.zeros(1, 64, h, w) for h, w in LEVELS]
    anchors, output = model.anchors_for(features), model.head(features)
    logits, deltas = torch.full((2, A, K), -20.0), torch.zeros(2, A, 4)
    logits[1, 2000, 2] = 3.0
    box = torch.tensor([78.0, 5, 92, 21])
    deltas[1, 2000] = boxes_to_deltas(anchors[2000], box)
    output = output._replace(logits=logits, deltas=deltas)
    found = model.detections(output, anchors, LEVEL_SIZES, SIZES)
    assert len(found[0]["labels"]) == 0
    torch.testing.assert_close(found[1]["boxes"], box[None])
    assert found[1]["labels"].tolist() == [2]
    assert found[1]["scores"].item() == pytest.approx(1 / (1 + math.exp(-3)))


@pytest.mark.parametrize("extra", ["p6p7_from_p5", "none"])
def test_other_pyramids_and_sizes_that_are_not_multiples_of_the_stride(extra):
    model = small_retinanet(replace(SMALL, fpn_extra=extra))
    images, sizes = torch.randn(1, 3, 101, 67), torch.tensor([[101, 67]])
    goal = target([[10, 30, 60, 77.5]], [1])
    assert all(v.isfinite() for v in model(images, sizes, [goal]).values())
    assert len(model(images, sizes)) == 1


def test_bfloat16_autocast():
    model = small_retinanet(replace(SMALL, score_threshold=0.0))
    full = model(batch(), SIZES, TARGETS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model.head(model.pyramid(batch()))
        losses = model(batch(), SIZES, TARGETS)
        found = model(batch(), SIZES)
    assert output.logits.dtype == torch.bfloat16
    assert output.deltas.dtype == torch.float32
    for key, value in losses.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, full[key], rtol=0.05, atol=0.0)
    sum(losses.values()).backward()
    assert all(d["boxes"].dtype == d["scores"].dtype == torch.float32 for d in found)


def test_bad_options():
    with pytest.raises(ValueError, match="box_loss is 'ciou'.*l1, smooth_l1, giou, iou"):
        RetinaNetConfig(box_loss="ciou")
    with pytest.raises(ValueError, match="tower_norm is 'bn'.*none, gn"):
        RetinaNetConfig(tower_norm="bn")
    with pytest.raises(ValueError, match="prior is 0.0; it must be above 0 and below 1"):
        RetinaNetConfig(prior=0.0)
    message = "options.background_iou is 0.6; it must be above 0 and at most 0.5"
    with pytest.raises(ValueError, match=message):
        RetinaNetConfig(background_iou=0.6)
