import pytest
import torch

from models.coders import boxes_to_distances, centerness_target, distances_to_boxes


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


def test_centerness_is_finite_a_rounding_error_outside():
    assert centerness_target(torch.tensor([-1e-5, 3.0, 8.0, 3.0])).item() == 0


def test_empty():
    points, empty = torch.zeros(0, 2), torch.zeros(0, 4)
    assert distances_to_boxes(points, empty).shape == (0, 4)
    assert boxes_to_distances(points, empty).shape == (0, 4)
    assert centerness_target(empty).shape == (0,)
