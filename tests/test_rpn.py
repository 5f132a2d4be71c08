from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.ops import box_iou

from models.assign import IGNORE
from models.coders import boxes_to_deltas, deltas_to_boxes
from models.rpn import RPN, RPNConfig

STRIDES = (4, 8, 16, 32, 64)
LEVELS = ((16, 24), (8, 12), (4, 6), (2, 3), (1, 2))  # of a batch of 64 x 96
LEVEL_SIZES = [h * w * 3 for h, w in LEVELS]
A = sum(LEVEL_SIZES)
SIZES = torch.tensor([[64, 96], [50, 70]])
BOXES = [
    torch.tensor([[4.0, 4, 60, 60], [30, 10, 62, 40], [8, 8, 14, 12]]),
    torch.tensor([[10.0, 5, 66, 45]]),
]
NOTHING = [torch.zeros(0, 4)] * 2
SMALL = RPNConfig(channels=16)


def rpn(config: RPNConfig = SMALL) -> RPN:
    torch.manual_seed(0)
    model = RPN(config, STRIDES)
    for layer in (model.objectness, model.box_regression):
        nn.init.normal_(layer.weight, std=0.1)
    return model


def features(seed: int = 1) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 16, h, w, generator=generator).mul(10) for h, w in LEVELS]


def test_shapes_and_order():
    output = rpn()(features())
    assert output.objectness.shape == (2, A)
    assert output.deltas.shape == (2, A, 4)
    assert output.anchors.shape == (A, 4)
    assert output.level_sizes == LEVEL_SIZES
    size = (output.anchors[:, 2:] - output.anchors[:, :2]).prod(dim=1).sqrt()
    for stride, part in zip(STRIDES, size.split(LEVEL_SIZES), strict=True):
        torch.testing.assert_close(part, torch.full_like(part, 8.0 * stride))


def test_a_prediction_comes_from_the_cell_of_its_anchor():
    model = RPN(replace(SMALL, rpn_convs=0), STRIDES)
    maps = [torch.zeros(1, 16, h, w) for h, w in LEVELS]
    maps[2][0, :, 1, 5] = 1.0
    nn.init.zeros_(model.objectness.weight)
    model.objectness.weight.data[1] = 1.0  # the square anchor
    output = model(maps)
    assert output.objectness.count_nonzero() == 1
    index = output.objectness[0].argmax()
    assert output.anchors[index].tolist() == [80 - 64, 16 - 64, 80 + 64, 16 + 64]


def test_losses_equal_a_slow_loop():
    config = replace(SMALL, rpn_samples=10**6)
    model, output = rpn(config), rpn(config)(features())
    matched = model.assign(output.anchors, BOXES)
    assert (matched == IGNORE).any()
    sampled, cost_objectness, cost_box = 0, 0.0, 0.0
    for n in range(2):
        for a in range(A):
            index = int(matched[n, a])
            if index == IGNORE:
                continue
            sampled += 1
            probability = output.objectness[n, a].sigmoid().log().item()
            complement = (-output.objectness[n, a]).sigmoid().log().item()
            cost_objectness -= probability if index >= 0 else complement
            if index >= 0:
                goal = boxes_to_deltas(output.anchors[a], BOXES[n][index])
                cost_box += (output.deltas[n, a] - goal).abs().sum().item()
    losses = model.losses(output, BOXES)
    assert list(losses) == ["loss_rpn_objectness", "loss_rpn_box"]
    objectness = losses["loss_rpn_objectness"].item()
    assert objectness == pytest.approx(cost_objectness / sampled, rel=1e-4)
    assert losses["loss_rpn_box"].item() == pytest.approx(cost_box / sampled, rel=1e-4)


def test_only_samples_are_counted():
    model = rpn(replace(SMALL, rpn_samples=8, rpn_positive_fraction=0.5))
    output = model(features())
    output = output._replace(objectness=output.objectness.detach().requires_grad_())
    output = output._replace(deltas=output.deltas.detach().requires_grad_())
    matched = model.assign(output.anchors, BOXES)
    losses = model.losses(output, BOXES)
    sum(losses.values()).backward()
    for n in range(2):
        used = output.objectness.grad[n] != 0
        positive = output.deltas.grad[n].any(dim=1)
        limit = min(4, int((matched[n] >= 0).sum()))
        assert used.sum() == 8
        assert positive.sum() == limit > 0
        assert (positive <= used).all()
        assert (matched[n][positive] >= 0).all()
        assert (matched[n][used & ~positive] == -1).all()


@pytest.mark.parametrize("boxes", [BOXES, [BOXES[0], NOTHING[0]], NOTHING])
def test_gradients_with_and_without_boxes(boxes):
    model = rpn()
    losses = model.losses(model(features()), boxes)
    assert all(v.isfinite() and v.dtype == torch.float32 for v in losses.values())
    assert (losses["loss_rpn_box"] > 0) == (boxes is not NOTHING)
    assert losses["loss_rpn_objectness"] > 0
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def slow_proposals(output, n, size, topk, limit, nms_iou):
    """Section 3.3 of Faster R-CNN, each level on its own, one box at a time."""
    candidates, first = [], 0
    for level, count in enumerate(output.level_sizes):
        order = output.objectness[n, first : first + count].argsort(descending=True)[:topk]
        for a in (order + first).tolist():
            x1, y1, x2, y2 = deltas_to_boxes(output.anchors[a], output.deltas[n, a]).tolist()
            height, width = size
            box = [min(max(x1, 0), width), min(max(y1, 0), height)]
            box += [min(max(x2, 0), width), min(max(y2, 0), height)]
            if box[2] - box[0] >= 1e-3 and box[3] - box[1] >= 1e-3:
                candidates.append((output.objectness[n, a].item(), level, box))
        first += count
    kept = []
    for score, level, box in sorted(candidates, reverse=True):
        rivals = [other for _, rank, other in kept if rank == level]
        box_here = torch.tensor([box])
        if not rivals or box_iou(box_here, torch.tensor(rivals)).max() <= nms_iou:
            kept.append((score, level, box))
    return torch.tensor([box for _, _, box in kept[:limit]])


@pytest.mark.usefixtures("double_precision")  # overlaps near the threshold, nearly equal scores
@pytest.mark.parametrize(("topk", "limit"), [(40, 30), (1000, 1000)])
def test_proposals_equal_a_slow_loop(topk, limit):
    model = rpn()
    with torch.no_grad():
        output = model(features())
    proposals = model.propose(output, SIZES, topk, limit)
    for n, size in enumerate(SIZES.tolist()):
        expected = slow_proposals(output, n, size, topk, limit, 0.7)
        assert len(expected) == 30 if limit == 30 else len(expected) > 100
        torch.testing.assert_close(proposals[n], expected, rtol=0, atol=1e-9)


def test_proposals_are_constants_inside_the_true_image():
    model = rpn()
    for proposals, (height, width) in zip(
        model.propose(model(features()), SIZES, 1000, 50), SIZES.tolist(), strict=True
    ):
        assert 0 < len(proposals) <= 50
        assert not proposals.requires_grad
        assert proposals.min() >= 0
        assert proposals[:, 2].max() <= width
        assert proposals[:, 3].max() <= height
        assert (proposals[:, 2:] > proposals[:, :2]).all()


def test_proposals_with_certain_scores_are_still_ordered():
    # As probabilities, all of these logits would be 1 in single precision.
    model = rpn()
    output = model(features())
    logits = torch.full((2, A), -20.0)
    chosen = torch.tensor([100, 40, 900])
    logits[:, chosen] = torch.tensor([30.0, 40.0, 50.0])
    output = output._replace(objectness=logits, deltas=torch.zeros(2, A, 4))
    best = model.propose(output, [(1000, 1000)] * 2, 10, 3)[0]
    torch.testing.assert_close(best, output.anchors[chosen.flip(0)].clamp(min=0))


def test_half_precision():
    model = rpn()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(features())
        losses = model.losses(output, BOXES)
        proposals = model.propose(output, SIZES, 100, 20)
    assert output.deltas.dtype == torch.float32
    assert all(v.dtype == torch.float32 and v.isfinite() for v in losses.values())
    assert all(p.dtype == torch.float32 for p in proposals)


def test_objectness_is_binary_cross_entropy():
    # Guards the slow loop above.
    logits, goal = torch.tensor([0.3, -2.0]), torch.tensor([1.0, 0.0])
    cost = -logits[0].sigmoid().log() - (-logits[1]).sigmoid().log()
    reference = F.binary_cross_entropy_with_logits(logits, goal, reduction="sum")
    torch.testing.assert_close(cost, reference)


def test_bad_options():
    with pytest.raises(ValueError, match="rpn_box_loss is 'l2'"):
        RPNConfig(rpn_box_loss="l2")
    message = "rpn_background_iou is 0.8; it must be above 0 and at most 0.7"
    with pytest.raises(ValueError, match=message):
        RPNConfig(rpn_background_iou=0.8)
