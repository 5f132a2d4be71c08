import math

import pytest
import torch
from torchvision.models.detection._utils import BoxCoder

from models.coders import (
    boxes_to_deltas,
    boxes_to_distances,
    centerness_target,
    deltas_to_boxes,
    distances_to_boxes,
)


def test_distances_by_hand():
    point, box = torch.tensor([[30.0, 40.0]]), torch.tensor([[10.0, 35.0, 100.0, 80.0]])
    assert boxes_to_distances(point, box).tolist() == [[20, 5, 70, 40]]
    assert distances_to_boxes(point, torch.tensor([[20.0, 5, 70, 40]])).tolist() == box.tolist()


def test_round_trip():
    torch.manual_seed(0)
    points = torch.rand(50, 2) * 100
    distances = torch.rand(50, 4) * 60
    boxes = distances_to_boxes(points, distances)
    torch.testing.assert_close(boxes_to_distances(points, boxes), distances, rtol=0, atol=1e-4)


def test_points_broadcast_over_images():
    points, distances = torch.rand(7, 2), torch.rand(3, 7, 4)
    boxes = distances_to_boxes(points, distances)
    assert boxes.shape == (3, 7, 4)
    for n in range(3):
        assert torch.equal(boxes[n], distances_to_boxes(points, distances[n]))


@pytest.mark.parametrize(
    ("distances", "expected"),
    [
        ((5, 9, 5, 9), 1.0),
        ((1, 9, 4, 9), 0.5),
        ((1, 2, 4, 8), 0.25),
        ((0, 9, 4, 9), 0.0),
        ((30, 20, 10, 20), (1 / 3) ** 0.5),
    ],
)
def test_centerness_by_hand(distances, expected):
    value = centerness_target(torch.tensor([distances], dtype=torch.float32))
    assert value.tolist() == pytest.approx([expected])


def test_centerness_is_finite_just_outside_the_box():
    assert centerness_target(torch.tensor([-1e-5, 3.0, 8.0, 3.0])).item() == 0


def test_empty():
    points, empty = torch.zeros(0, 2), torch.zeros(0, 4)
    assert distances_to_boxes(points, empty).shape == (0, 4)
    assert boxes_to_distances(points, empty).shape == (0, 4)
    assert centerness_target(empty).shape == (0,)


def test_deltas_by_hand():
    anchor, box = torch.tensor([[10.0, 20, 30, 60]]), torch.tensor([[20.0, 30, 60, 50]])
    # Centres (20, 40) and (40, 40), sizes 20 x 40 and 40 x 20.
    expected = torch.tensor([[1.0, 0.0, math.log(2), -math.log(2)]])
    torch.testing.assert_close(boxes_to_deltas(anchor, box), expected)
    weighted = boxes_to_deltas(anchor, box, (10.0, 5.0))
    torch.testing.assert_close(weighted, expected * torch.tensor([10.0, 10, 5, 5]))
    torch.testing.assert_close(deltas_to_boxes(anchor, weighted, (10.0, 5.0)), box)


def random_boxes(*shape):
    corner = torch.rand(*shape, 2) * 100
    return torch.cat((corner, corner + 1 + torch.rand(*shape, 2) * 80), dim=-1)


@pytest.mark.usefixtures("double_precision")  # a side is the difference of a centre and a size
@pytest.mark.parametrize("weights", [(1.0, 1.0), (10.0, 5.0)])
def test_deltas_round_trip_and_equal_torchvisions(weights):
    torch.manual_seed(0)
    anchors, boxes = random_boxes(50), random_boxes(50)
    deltas = boxes_to_deltas(anchors, boxes, weights)
    torch.testing.assert_close(deltas_to_boxes(anchors, deltas, weights), boxes, rtol=0, atol=1e-9)
    coder = BoxCoder((weights[0], weights[0], weights[1], weights[1]))
    torch.testing.assert_close(deltas, coder.encode_single(boxes, anchors))
    noise = torch.randn(50, 4) * 3
    torch.testing.assert_close(
        deltas_to_boxes(anchors, noise, weights), coder.decode_single(noise, anchors)
    )


def test_deltas_broadcast_over_images_and_stay_finite():
    anchors, deltas = random_boxes(7), torch.full((3, 7, 4), 1e4)
    boxes = deltas_to_boxes(anchors, deltas)
    assert boxes.shape == (3, 7, 4)
    assert boxes.isfinite().all()
    ratio = (boxes[0, :, 2] - boxes[0, :, 0]) / (anchors[:, 2] - anchors[:, 0])
    torch.testing.assert_close(ratio, torch.full((7,), 62.5), rtol=1e-2, atol=0)
    assert boxes_to_deltas(torch.zeros(0, 4), torch.zeros(0, 4)).shape == (0, 4)
    assert deltas_to_boxes(torch.zeros(0, 4), torch.zeros(0, 4)).shape == (0, 4)
