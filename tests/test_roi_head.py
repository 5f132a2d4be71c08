import math
from collections import OrderedDict
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.ops import MultiScaleRoIAlign, roi_align
from torchvision.ops.poolers import LevelMapper

from models.coders import boxes_to_deltas
from models.roi_head import DELTA_WEIGHTS, RoIHead, RoIHeadConfig, RoIOutput, levels_of, pool_rois

K = 3
STRIDES = (4, 8, 16, 32)
SIZES = torch.tensor([[256, 256], [200, 180]])
SMALL = RoIHeadConfig(channels=16, box_features=32)
BOXES = [torch.tensor([[10.0, 10, 60, 60], [100, 20, 240, 200]]), torch.tensor([[5.0, 8, 90, 90]])]
LABELS = [torch.tensor([2, 0]), torch.tensor([1])]
ROIS = [
    torch.tensor([[12.0, 10, 60, 58], [0, 0, 30, 30], [90, 20, 240, 210], [100, 20, 240, 200]]),
    torch.tensor([[5.0, 8, 90, 70], [100, 100, 150, 150]]),
]
TARGETS = [{"boxes": b, "labels": y} for b, y in zip(BOXES, LABELS, strict=True)]
EMPTY = torch.zeros(0, 4)


def head(**changes) -> RoIHead:
    torch.manual_seed(0)
    return RoIHead(replace(SMALL, **changes), K, STRIDES)


def features(channels: int = 16) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(2, channels, 256 // s, 256 // s, generator=generator) for s in STRIDES]


def random_rois(count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * 100
    size = 2 ** (torch.rand(count, 2, generator=generator) * 10)  # 1 to 1024 px
    return torch.cat((corner, corner + size), dim=1)


def test_levels_equal_torchvisions():
    rois = random_rois(2000, 0)
    edges = torch.tensor([[0.0, 0, s, s] for s in (1, 56, 111.9, 112, 112.1, 224, 448, 896, 1e5)])
    rois = torch.cat((rois, edges))
    levels = levels_of(rois, STRIDES)
    assert levels.dtype == torch.int64
    assert levels.unique().tolist() == [0, 1, 2, 3]
    assert torch.equal(levels, LevelMapper(2, 5)([rois]))
    assert levels[-len(edges) :].tolist() == [0, 0, 0, 1, 1, 2, 3, 3, 3]
    assert levels_of(torch.tensor([[5.0, 5, 5, 9]]), STRIDES).tolist() == [0]


def test_pooling_equals_torchvisions():
    rois = [random_rois(40, 1).clamp(max=256), random_rois(25, 2).clamp(max=256)]
    pooled = pool_rois(features(), rois, STRIDES, 7, 2, aligned=False)
    assert pooled.shape == (65, 16, 7, 7)
    theirs = MultiScaleRoIAlign(["0", "1", "2", "3"], 7, 2)
    maps = OrderedDict((str(i), f) for i, f in enumerate(features()))
    torch.testing.assert_close(pooled, theirs(maps, rois, [(256, 256)] * 2))


def test_each_roi_sees_its_image_and_place():
    # Maps whose values are their own coordinates and the image's number.
    maps = []
    for stride in STRIDES:
        cells = (torch.arange(256 // stride) + 0.5) * stride
        y, x = torch.meshgrid(cells, cells, indexing="ij")
        maps.append(torch.stack([torch.stack((x, y, torch.full_like(x, n))) for n in range(2)]))
    rois = [
        torch.tensor([[64.0, 32, 92, 60], [32, 32, 192, 192]]),
        torch.tensor([[64.0, 64, 128, 192]]),
    ]
    pooled = pool_rois(maps, rois, STRIDES, 2, 2, aligned=True)
    centers = pooled[:, :2].mean(dim=(2, 3))
    expected = torch.tensor([[78.0, 46], [112, 112], [96, 128]])
    torch.testing.assert_close(centers, expected)  # aligned: not half a pixel off
    assert pooled[:, 2].unique(dim=0).tolist() == [[[0, 0], [0, 0]], [[1, 1], [1, 1]]]
    assert pooled[2, 2].tolist() == [[1, 1], [1, 1]]


def test_gradients_of_the_pooling_reach_only_the_level_of_the_roi():
    maps = [f.requires_grad_() for f in features()]
    rois = [torch.tensor([[10.0, 10, 60, 60]]), torch.tensor([[0.0, 0, 250, 250]])]
    pool_rois(maps, rois, STRIDES, 7, 2, aligned=True).sum().backward()
    assert [bool(m.grad.any()) for m in maps] == [True, False, True, False]
    assert maps[0].grad[0].any()
    assert not maps[0].grad[1].any()


def test_half_precision_does_not_move_rois():
    maps = [f.bfloat16() for f in features()]
    rois = [random_rois(20, 3).clamp(max=256), EMPTY]
    pooled = pool_rois(maps, rois, STRIDES, 7, 2, aligned=True)
    exact = pool_rois([m.float() for m in maps], rois, STRIDES, 7, 2, aligned=True)
    assert pooled.dtype == torch.float32
    assert torch.equal(pooled, exact)


@pytest.mark.parametrize("norm", ["none", "gn", "bn"])
@pytest.mark.parametrize("kind", ["2fc", "4conv1fc"])
def test_box_heads(kind, norm):
    model = head(box_head=kind, box_norm=norm, class_agnostic=False).train()
    output = model(features(), ROIS)
    assert output.logits.shape == (6, K + 1)
    assert output.deltas.shape == (6, K, 4)
    assert sum(isinstance(m, nn.Conv2d) for m in model.modules()) == (
        4 if kind == "4conv1fc" else 0
    )
    fcs = [m for m in model.fcs if isinstance(m, nn.Linear)]
    assert [m.in_features for m in fcs] == [16 * 49, 32][: 1 if kind == "4conv1fc" else 2]
    empty = model(features(), [EMPTY, EMPTY])
    assert empty.logits.shape == (0, K + 1)
    assert empty.deltas.shape == (0, K, 4)
    sum(t.sum() for t in empty).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert all(b.isfinite().all() for b in model.buffers())


def test_parts_make_the_whole():
    model = head()
    output = model(features(), ROIS)
    box_features = model.box_features(features(), ROIS)
    assert box_features.shape == (6, 32)
    assert output.deltas.shape == (6, 1, 4)
    assert torch.equal(output.logits, model.classifier(box_features))
    assert torch.equal(output.deltas, model.deltas_from(box_features))


def test_assign_and_sample():
    model = head(roi_samples=3, roi_positive_fraction=0.4)
    matched = model.assign(ROIS, BOXES)
    assert [m.tolist() for m in matched] == [[0, -1, 1, 1], [0, -1]]
    torch.manual_seed(0)
    rois, kept = model.sample(ROIS, matched)
    assert [len(r) for r in rois] == [2, 2]  # one positive each, and all of the background
    for n in range(2):
        assert sorted(kept[n].sign().tolist())[0] == -1
        assert torch.equal(model.assign(rois, BOXES)[n], kept[n])
    nothing = model.assign([ROIS[0], EMPTY], [EMPTY, BOXES[0]])
    assert [m.tolist() for m in nothing] == [[-1] * 4, []]


@pytest.mark.parametrize("class_agnostic", [True, False])
def test_losses_equal_a_slow_loop(class_agnostic):
    model = head(class_agnostic=class_agnostic)
    groups = 1 if class_agnostic else K
    output = RoIOutput(torch.randn(6, K + 1), torch.randn(6, groups, 4))
    matched = model.assign(ROIS, BOXES)
    cost_class, cost_box, row = 0.0, 0.0, 0
    for n in range(2):
        for roi, index in zip(ROIS[n], matched[n].tolist(), strict=True):
            label = int(LABELS[n][index]) if index >= 0 else K
            cost_class -= output.logits[row].log_softmax(dim=0)[label].item()
            if index >= 0:
                goal = boxes_to_deltas(roi, BOXES[n][index]) * torch.tensor([10.0, 10, 5, 5])
                pred = output.deltas[row, 0 if class_agnostic else label]
                cost_box += (pred - goal).abs().sum().item()
            row += 1
    losses = model.losses(output, ROIS, matched, TARGETS)
    assert list(losses) == ["loss_class", "loss_box"]
    assert losses["loss_class"].item() == pytest.approx(cost_class / 6, rel=1e-4)
    assert losses["loss_box"].item() == pytest.approx(cost_box / 6, rel=1e-4)


def test_class_agnostic_boxes_need_no_labels():
    model = head()
    output, matched = model(features(), ROIS), model.assign(ROIS, BOXES)
    without = model.box_losses(output.deltas, ROIS, matched, BOXES)
    torch.testing.assert_close(
        without["loss_box"], model.losses(output, ROIS, matched, TARGETS)["loss_box"]
    )


@pytest.mark.parametrize("rois", [ROIS, [EMPTY, EMPTY]])
def test_losses_without_boxes_are_zero_and_attached(rois):
    model = head(class_agnostic=False)
    nothing = [{"boxes": EMPTY, "labels": torch.zeros(0, dtype=torch.int64)}] * 2
    matched = model.assign(rois, [EMPTY, EMPTY])
    losses = model.losses(model(features(), rois), rois, matched, nothing)
    assert losses["loss_box"] == 0
    assert (losses["loss_class"] > 0) == (rois is ROIS)
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("class_agnostic", [True, False])
def test_a_planted_prediction_is_found(class_agnostic):
    model = head(class_agnostic=class_agnostic)
    logits = torch.full((6, K + 1), -20.0)
    logits[:, K] = 0.0  # background
    logits[4, 2] = 2.0  # first RoI of the second image
    deltas = torch.full((6, 1 if class_agnostic else K, 4), 9.0)
    box = torch.tensor([8.0, 10, 88, 300])
    deltas[4, -1] = boxes_to_deltas(ROIS[1][0], box, DELTA_WEIGHTS)
    found = model.detections(RoIOutput(logits, deltas), ROIS, SIZES)
    assert len(found[0]["boxes"]) == 0
    torch.testing.assert_close(found[1]["boxes"], torch.tensor([[8.0, 10, 88, 200]]))
    assert found[1]["labels"].tolist() == [2]
    assert found[1]["scores"].item() == pytest.approx(1 / (1 + math.exp(-2)))


def test_detections_equal_a_slow_loop_and_images_without_rois_have_none():
    model = head(score_threshold=0.2, class_agnostic=False)
    torch.manual_seed(3)
    output = RoIOutput(torch.randn(6, K + 1), torch.randn(6, K, 4) * 0.1)
    rois = [EMPTY, torch.cat(ROIS)]
    found = model.detections(output, rois, [(256, 256)] * 2)
    assert [len(v) for v in found[0].values()] == [0, 0, 0]
    scores = output.logits.softmax(dim=1)
    pairs = [(scores[r, k].item(), k) for r in range(6) for k in range(K) if scores[r, k] > 0.2]
    got = list(zip(found[1]["scores"].tolist(), found[1]["labels"].tolist(), strict=True))
    assert len(got) > 3
    assert set(got) <= set(pairs)  # suppression may drop some
    assert got[0] == max(pairs)


def test_initialisation():
    model = head(channels=64, box_features=256)
    assert model.classifier.weight.std().item() == pytest.approx(0.01, rel=0.1)
    assert model.box_regression.weight.std().item() == pytest.approx(0.001, rel=0.1)
    rois = [random_rois(30, 5).clamp(max=250), random_rois(30, 6).clamp(max=250)]
    assert 0.3 < model.box_features(features(64), rois).pow(2).mean().sqrt() < 3


def test_the_aligned_setting_reaches_the_kernel():
    rois = [torch.tensor([[10.0, 10, 60, 60]]), EMPTY]
    flat = torch.tensor([[0.0, 10, 10, 60, 60]])
    for aligned in (True, False):
        model = head(roi_aligned=aligned)
        expected = roi_align(features()[0], flat, 7, 0.25, 2, aligned)
        expected = model.fcs(model.convs(expected).flatten(1))
        torch.testing.assert_close(model.box_features(features(), rois), expected)


def test_cross_entropy_counts_the_background_last():
    model = head()
    matched = [torch.tensor([0, -1]), torch.tensor([-1])]
    logits = torch.randn(3, K + 1)
    loss = model.class_loss(logits, matched, [torch.tensor([1]), torch.zeros(0, dtype=torch.int64)])
    torch.testing.assert_close(loss, F.cross_entropy(logits, torch.tensor([1, K, K])))


def test_bad_options():
    with pytest.raises(ValueError, match="box_head is '3fc'.*2fc, 4conv1fc"):
        RoIHeadConfig(box_head="3fc")
    with pytest.raises(ValueError, match="box_norm is 'syncbn'.*none, gn, bn"):
        RoIHeadConfig(box_norm="syncbn")
    with pytest.raises(ValueError, match="model.options.box_loss is 'l2'"):
        RoIHeadConfig(box_loss="l2")
    with pytest.raises(ValueError, match="roi_foreground_iou is 0.0"):
        RoIHeadConfig(roi_foreground_iou=0.0)
