import pytest
import torch
import torch.nn.functional as F
from torchvision.ops import box_iou, generalized_box_iou_loss

from models.box_loss import BOX_LOSSES, box_loss
from models.coders import boxes_to_deltas, deltas_to_boxes


def random_boxes(count):
    corner = torch.rand(count, 2) * 50
    return torch.cat((corner, corner + 5 + torch.rand(count, 2) * 40), dim=1)


@pytest.mark.parametrize("weights", [(1.0, 1.0), (10.0, 5.0)])
def test_every_kind(weights):
    torch.manual_seed(0)
    anchors, boxes, deltas = random_boxes(20), random_boxes(20), torch.randn(20, 4) * 0.3
    predicted = deltas_to_boxes(anchors, deltas, weights)
    target = boxes_to_deltas(anchors, boxes, weights)
    expected = {
        "l1": F.l1_loss(deltas, target, reduction="sum"),
        "smooth_l1": F.smooth_l1_loss(deltas, target, beta=0.2, reduction="sum"),
        "giou": generalized_box_iou_loss(predicted, boxes, reduction="sum"),
        "iou": -box_iou(predicted, boxes).diagonal().clamp(min=1e-6).log().sum(),
    }
    assert set(expected) == set(BOX_LOSSES)
    for kind, value in expected.items():
        loss = box_loss(kind, deltas, anchors, boxes, 4.0, beta=0.2, weights=weights)
        torch.testing.assert_close(loss, value / 4, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", BOX_LOSSES)
def test_perfect_deltas_and_empty_input_cost_nothing(kind):
    anchors, boxes = random_boxes(10), random_boxes(10)
    loss = box_loss(kind, boxes_to_deltas(anchors, boxes), anchors, boxes, 1.0)
    assert loss.item() == pytest.approx(0, abs=1e-4)
    deltas = torch.zeros(0, 4, requires_grad=True)
    loss = box_loss(kind, deltas, torch.zeros(0, 4), torch.zeros(0, 4), 1.0)
    assert loss == 0
    loss.backward()
    assert deltas.grad is not None
