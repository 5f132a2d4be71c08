import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.ops import box_iou, generalized_box_iou_loss, sigmoid_focal_loss

from models.backbone import build_backbone
from models.coders import distances_to_boxes
from models.fcos import FCOS, FCOSConfig, FCOSHead
from tests.helpers.labelled_batch import NOTHING, SIZES, TARGETS, K, batch, target

LEVELS = ((16, 20), (8, 10), (4, 5), (2, 3), (1, 2))  # of a batch of 128 x 160
STRIDES = (8, 16, 32, 64, 128)
A = sum(h * w for h, w in LEVELS)
SMALL = FCOSConfig(channels=64, num_convs=2)


def small_fcos(config: FCOSConfig = SMALL) -> FCOS:
    torch.manual_seed(0)
    return FCOS(build_backbone("resnet18"), config, K)


def test_shapes_and_order():
    model = small_fcos()
    features = model.pyramid(batch())
    output = model.head(features)
    points, strides = model.points_for(features)
    assert [tuple(f.shape) for f in features] == [(2, 64, h, w) for h, w in LEVELS]
    assert output.logits.shape == (2, A, K)
    assert output.distances.shape == (2, A, 4)
    assert output.centerness.shape == (2, A)
    assert points.shape == (A, 2)
    assert strides.shape == (A,)
    assert model.strides == STRIDES
    assert strides.unique().tolist() == list(STRIDES)
    assert points[0].tolist() == [4, 4]
    assert points[-1].tolist() == [192, 64]


def test_a_prediction_comes_from_the_cell_of_its_point():
    model = small_fcos()
    features = [torch.zeros(1, 64, h, w) for h, w in LEVELS]
    probe = nn.Conv2d(64, K, 1)
    nn.init.ones_(probe.weight)
    nn.init.zeros_(probe.bias)
    model.head.cls_logits = probe
    features[1][0, :, 3, 7] = 1.0
    logits = model.head.logits_from(features)
    points, strides = model.points_for(features)
    index = logits[0, :, 0].argmax()
    assert logits[0].count_nonzero() == K
    assert points[index].tolist() == [7.5 * 16, 3.5 * 16]
    assert strides[index] == 16


def test_parts_make_the_whole():
    model = small_fcos()
    features = model.pyramid(batch())
    output = model.head(features)
    cls_features, box_features = model.head.towers(features)
    distances, centerness = model.head.boxes_from(box_features)
    assert torch.equal(output.logits, model.head.logits_from(cls_features))
    assert torch.equal(output.distances, distances)
    assert torch.equal(output.centerness, centerness)


@pytest.mark.parametrize("norm_on_stride", [True, False])
@pytest.mark.parametrize("level_scales", [True, False])
def test_distances_are_pixels(norm_on_stride, level_scales):
    config = replace(SMALL, norm_on_stride=norm_on_stride, level_scales=level_scales)
    head = FCOSHead(config, K, STRIDES)
    scales = torch.tensor([1.0, 2.0, 0.5, 3.0, 1.5])
    if level_scales:
        head.scales.data.copy_(scales)
    nn.init.zeros_(head.box_regression.weight)
    head.box_regression.bias.data.copy_(torch.tensor([-1.0, 0.5, 1.0, 2.0]))
    distances, _ = head.boxes_from([torch.randn(2, 64, h, w) for h, w in LEVELS])
    parts = distances.split([h * w for h, w in LEVELS], dim=1)
    for part, stride, scale in zip(parts, STRIDES, scales, strict=True):
        raw = torch.tensor([-1.0, 0.5, 1.0, 2.0]) * (scale if level_scales else 1)
        expected = raw.clamp(min=0) * stride if norm_on_stride else raw.exp()
        torch.testing.assert_close(part, expected.expand_as(part))


def test_huge_raw_distances_stay_finite():
    head = FCOSHead(replace(SMALL, norm_on_stride=False), K, STRIDES)
    nn.init.constant_(head.box_regression.bias, 1e4)
    distances, _ = head.boxes_from([torch.randn(1, 64, h, w) for h, w in LEVELS])
    assert distances.isfinite().all()


def test_initialisation():
    torch.manual_seed(0)
    head = FCOSHead(FCOSConfig(), 80, STRIDES)
    convs = {name: m for name, m in head.named_modules() if isinstance(m, nn.Conv2d)}
    assert len(convs) == 4 + 4 + 3
    for name, conv in convs.items():
        assert conv.weight.std().item() == pytest.approx(0.01, rel=0.1), name
        assert conv.weight.mean().item() == pytest.approx(0, abs=1e-3), name
        bias = -math.log(99) if name == "cls_logits" else 0
        torch.testing.assert_close(conv.bias, torch.full_like(conv.bias, bias))
    assert head.scales.tolist() == [1] * 5
    shifted = FCOSHead(replace(SMALL, distance_bias=2.0), 80, STRIDES)
    assert shifted.box_regression.bias.tolist() == [2] * 4
    logits = head([torch.randn(1, 256, h, w) for h, w in LEVELS]).logits
    assert logits.sigmoid().mean().item() == pytest.approx(0.01, rel=0.1)


@pytest.mark.parametrize(
    ("channels", "groups"), [(256, 32), (128, 32), (96, 32), (64, 32), (48, 16), (32, 16)]
)
def test_group_norm_fits_the_channels(channels, groups):
    head = FCOSHead(FCOSConfig(channels=channels, num_convs=1), K, STRIDES)
    assert head.cls_tower[1].num_groups == head.box_tower[1].num_groups == groups


def slow_box_losses(distances, centerness, points, matched, boxes):
    """FCOS, equations 1 to 3, one point at a time: overlaps, centerness costs and targets."""
    overlaps, costs, weights = [], [], []
    for n in range(len(matched)):
        for a in (matched[n] >= 0).nonzero().flatten().tolist():
            x1, y1, x2, y2 = boxes[n][matched[n, a]].tolist()
            x, y = points[a].tolist()
            left, top, right, bottom = x - x1, y - y1, x2 - x, y2 - y
            weight = math.sqrt(
                min(left, right) / max(left, right) * min(top, bottom) / max(top, bottom)
            )
            pred = distances_to_boxes(points[a], distances[n, a])[None]
            goal = boxes[n][matched[n, a]][None]
            giou = generalized_box_iou_loss(pred, goal).item()
            iou = -box_iou(pred, goal).clamp(min=1e-6).log().item()
            probability = centerness[n, a].sigmoid().item()
            cost = -weight * math.log(probability) - (1 - weight) * math.log(1 - probability)
            overlaps.append({"giou": giou, "iou": iou})
            costs.append(cost)
            weights.append(weight)
    return overlaps, costs, weights


@pytest.mark.parametrize("kind", ["giou", "iou"])
@pytest.mark.parametrize("weighted", [True, False])
def test_losses_equal_a_slow_loop(kind, weighted):
    model = small_fcos(replace(SMALL, box_loss=kind, centerness_weighted=weighted))
    features = model.pyramid(batch())
    points, strides = model.points_for(features)
    boxes = [t["boxes"] for t in TARGETS]
    matched = model.assign(points, strides, boxes)
    logits, centerness = torch.randn(2, A, K), torch.randn(2, A)
    distances = torch.rand(2, A, 4) * 60
    overlaps, costs, weights = slow_box_losses(distances, centerness, points, matched, boxes)
    count = len(costs)
    assert count > 20

    one_hot = torch.zeros(2, A, K)
    for n, t in enumerate(TARGETS):
        for a in (matched[n] >= 0).nonzero().flatten().tolist():
            one_hot[n, a, t["labels"][matched[n, a]]] = 1
    loss_class = model.class_loss(logits, matched, [t["labels"] for t in TARGETS])
    expected = sigmoid_focal_loss(logits, one_hot, reduction="sum") / count
    torch.testing.assert_close(loss_class, expected)

    factors, total = (weights, sum(weights)) if weighted else ([1.0] * count, count)
    expected_box = sum(f * o[kind] for f, o in zip(factors, overlaps, strict=True)) / total
    losses = model.box_losses(distances, centerness, points, matched, boxes)
    assert losses["loss_box"].item() == pytest.approx(expected_box, rel=1e-4)
    assert losses["loss_centerness"].item() == pytest.approx(sum(costs) / count, rel=1e-4)


def test_assign_stacks_the_results_of_the_images():
    model = small_fcos()
    points, strides = model.points_for(model.pyramid(batch()))
    matched = model.assign(points, strides, [t["boxes"] for t in TARGETS])
    assert matched.shape == (2, A)
    assert set(matched[0].tolist()) == {-1, 0, 1, 2}
    assert set(matched[1].tolist()) == {-1, 0}
    radius_off = small_fcos(replace(SMALL, center_radius=None))
    more = radius_off.assign(points, strides, [t["boxes"] for t in TARGETS])
    assert (more >= 0).sum() > (matched >= 0).sum()


def test_perfect_distances_cost_nothing():
    model = small_fcos()
    points, strides = model.points_for(model.pyramid(batch()))
    boxes = [t["boxes"] for t in TARGETS]
    matched = model.assign(points, strides, boxes)
    goal = torch.stack([b[m.clamp(min=0)] for b, m in zip(boxes, matched, strict=True)])
    distances = torch.cat((points - goal[..., :2], goal[..., 2:] - points), dim=-1)
    losses = model.box_losses(distances, torch.zeros(2, A), points, matched, boxes)
    assert losses["loss_box"].item() == pytest.approx(0, abs=1e-5)


def test_without_positives_box_losses_are_zero_and_so_are_their_gradients():
    model = small_fcos()
    losses = model(batch(), SIZES, NOTHING)
    assert losses["loss_box"] == 0
    assert losses["loss_centerness"] == 0
    assert losses["loss_class"] > 0
    (losses["loss_box"] + losses["loss_centerness"]).backward()
    parts = (model.head.box_tower, model.head.box_regression, model.head.centerness)
    for parameter in [p for part in parts for p in part.parameters()] + [model.head.scales]:
        assert parameter.grad is not None
        assert not parameter.grad.any()


@pytest.mark.usefixtures("double_precision")  # one image and two: other convolutions
def test_an_image_without_boxes_adds_only_background():
    model = small_fcos().eval()
    both = model(batch(), SIZES, [TARGETS[0], NOTHING[0]])
    alone = model(batch()[:1], SIZES[:1], TARGETS[:1])
    torch.testing.assert_close(both["loss_box"], alone["loss_box"])
    torch.testing.assert_close(both["loss_centerness"], alone["loss_centerness"])
    assert both["loss_class"] > alone["loss_class"]


def test_a_planted_prediction_is_found():
    model = small_fcos()
    features = model.pyramid(batch())
    points, _ = model.points_for(features)
    output = model.head(features)
    logits = torch.full((2, A, K), -20.0)
    logits[1, 30, 2] = 3.0
    output = output._replace(
        logits=logits,
        distances=torch.tensor([6.0, 7.0, 8.0, 9.0]).expand(2, A, 4),
        centerness=torch.ones(2, A),
    )
    found = model.detections(output, points, [h * w for h, w in LEVELS], SIZES)
    assert len(found[0]["labels"]) == 0
    assert points[30].tolist() == [84, 12]
    assert found[1]["boxes"].tolist() == [[78, 5, 92, 21]]
    assert found[1]["labels"].tolist() == [2]
    score = math.sqrt(1 / (1 + math.exp(-3)) / (1 + math.exp(-1)))
    assert found[1]["scores"].item() == pytest.approx(score)


def test_one_image_of_one_cell_in_the_coarsest_levels():
    model = small_fcos(replace(SMALL, channels=32)).train()
    losses = model(batch()[:1, :, :64, :64], [(64, 64)], [target([[5, 6, 40, 50]], [0])])
    assert all(v.isfinite() for v in losses.values())


@pytest.mark.parametrize(("extra", "levels"), [("none", 3), ("pool", 4), ("p6p7_from_c5", 5)])
def test_other_pyramids(extra, levels):
    model = small_fcos(replace(SMALL, fpn_extra=extra))
    assert model.strides == STRIDES[:levels]
    assert len(model.head.scales) == levels
    assert all(v.isfinite() for v in model(batch(), SIZES, TARGETS).values())


@pytest.mark.parametrize("norm_on_stride", [True, False])
def test_bfloat16_autocast(norm_on_stride):
    model = small_fcos(replace(SMALL, norm_on_stride=norm_on_stride, score_threshold=0.0))
    full = model(batch(), SIZES, TARGETS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model.head(model.pyramid(batch()))
        losses = model(batch(), SIZES, TARGETS)
        found = model(batch(), SIZES)
    assert output.logits.dtype == torch.bfloat16
    assert output.distances.dtype == torch.float32
    for key, value in losses.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, full[key], rtol=0.05, atol=0.0)
    sum(losses.values()).backward()
    assert all(d["boxes"].dtype == d["scores"].dtype == torch.float32 for d in found)
    assert all(len(d["boxes"]) > 0 for d in found)


def test_bad_options():
    with pytest.raises(ValueError, match="box_loss is 'ciou'.*giou, iou"):
        FCOSConfig(box_loss="ciou")
    with pytest.raises(ValueError, match="prior is 1.0"):
        FCOSConfig(prior=1.0)


def test_a_binary_cross_entropy_by_hand_agrees_with_torch():
    # Guards the slow loop above, against which the losses are checked.
    logit, goal = torch.tensor(0.3), 0.7
    probability = logit.sigmoid().item()
    cost = -goal * math.log(probability) - (1 - goal) * math.log(1 - probability)
    reference = F.binary_cross_entropy_with_logits(logit, torch.tensor(goal)).item()
    assert cost == pytest.approx(reference, rel=1e-5)
