import math

import pytest
import torch
from torchvision.ops import box_iou, generalized_box_iou_loss

from losses.iou import box_iou_loss


def random_pairs(count: int = 200) -> tuple[torch.Tensor, torch.Tensor]:
    """Pairs of boxes; some overlap, some do not."""
    torch.manual_seed(0)
    corners = torch.rand(2, count, 2) * 60
    pred, target = torch.cat((corners, corners + 1 + torch.rand(2, count, 2) * 50), dim=2)
    return pred, target


def test_giou_is_torchvisions_in_value_and_gradient():
    pred, target = random_pairs()
    ours, theirs = pred.clone().requires_grad_(), pred.clone().requires_grad_()
    loss = box_iou_loss(ours, target, "giou", normalizer=7.0)
    reference = generalized_box_iou_loss(theirs, target, reduction="sum") / 7
    loss.backward()
    reference.backward()
    assert loss.shape == ()
    torch.testing.assert_close(loss, reference)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6)


def test_iou_is_minus_log_of_torchvisions_iou():
    pred, target = random_pairs()
    iou = box_iou(pred, target).diagonal()
    overlapping = iou > 0
    assert 20 < overlapping.sum() < 200
    loss = box_iou_loss(pred[overlapping], target[overlapping], "iou", normalizer=2.0)
    torch.testing.assert_close(loss, -iou[overlapping].log().sum() / 2)


def test_by_hand():
    pred, target = torch.tensor([[0.0, 0, 10, 10]]), torch.tensor([[5.0, 0, 15, 10]])
    assert box_iou_loss(pred, target, "iou").item() == pytest.approx(math.log(3))
    assert box_iou_loss(pred, target, "giou").item() == pytest.approx(1 - 1 / 3)
    apart = torch.tensor([[20.0, 0, 30, 10]])
    assert box_iou_loss(pred, apart, "giou").item() == pytest.approx(1 + 1 / 3)


@pytest.mark.parametrize("kind", ["giou", "iou"])
def test_weights_and_normalizer(kind):
    pred, target = random_pairs(5)
    weights = torch.tensor([0.0, 1.0, 0.5, 2.0, 0.25])
    single = torch.stack([box_iou_loss(pred[i : i + 1], target[i : i + 1], kind) for i in range(5)])
    loss = box_iou_loss(pred, target, kind, weights, torch.tensor(3.0))
    torch.testing.assert_close(loss, (single * weights).sum() / 3)


@pytest.mark.parametrize("kind", ["giou", "iou"])
def test_perfect_boxes_cost_nothing(kind):
    pred, _ = random_pairs()
    assert box_iou_loss(pred, pred, kind).item() == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("kind", ["giou", "iou"])
def test_boxes_without_area_and_disjoint_boxes_are_finite(kind):
    point, box = [5.0, 5, 5, 5], [20.0, 20, 30, 30]
    pred = torch.tensor([point, point, box], requires_grad=True)
    loss = box_iou_loss(pred, torch.tensor([point, box, point]), kind)
    loss.backward()
    assert loss.isfinite()
    assert pred.grad.isfinite().all()


@pytest.mark.parametrize("kind", ["giou", "iou"])
def test_no_pairs_are_zero_and_attached(kind):
    pred = torch.zeros(0, 4, requires_grad=True)
    loss = box_iou_loss(pred, torch.zeros(0, 4), kind, torch.zeros(0), 1.0)
    loss.backward()
    assert loss.item() == 0
    assert pred.grad.shape == (0, 4)


def test_unknown_kind():
    with pytest.raises(ValueError, match="'diou'.*giou, iou"):
        box_iou_loss(torch.zeros(0, 4), torch.zeros(0, 4), "diou")
