import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torchvision.ops import box_convert, generalized_box_iou

from models.assign import BACKGROUND
from models.matcher import match_queries, matching_costs, pad_targets, pairwise_giou

L, N, Q, K = 3, 4, 6, 5
WEIGHTS = (1.0, 5.0, 2.0)
SIDES = torch.tensor([[100.0, 50, 100, 50], [64, 64, 64, 64], [30, 90, 30, 90], [10, 10, 10, 10]])


def predictions(seed=0):
    torch.manual_seed(seed)
    return torch.randn(L, N, Q, K + 1), torch.rand(L, N, Q, 4) * 0.8 + 0.1


def targets(counts):
    torch.manual_seed(5)
    result = []
    for count, sides in zip(counts, SIDES, strict=True):
        corners = torch.rand(count, 2, 2).sort(dim=1).values.flatten(1)
        result.append({"boxes": corners * sides, "labels": torch.randint(K, (count,))})
    return result


def slow_costs(logits, boxes, target, sides):
    """(Q, M) of one layer and image, pair by pair."""
    costs = torch.zeros(Q, len(target["labels"]))
    for q in range(Q):
        for m, (goal, label) in enumerate(zip(target["boxes"], target["labels"], strict=True)):
            goal = goal / sides
            corners = box_convert(boxes[q], "cxcywh", "xyxy")
            giou = generalized_box_iou(corners[None], goal[None])[0, 0]
            distance = (boxes[q] - box_convert(goal, "xyxy", "cxcywh")).abs().sum()
            probability = logits[q].softmax(0)[label]
            costs[q, m] = 5 * distance - 2 * giou - probability
    return costs


def test_costs_and_pairs_are_those_of_a_slow_loop():
    logits, boxes = predictions()
    goals = targets((3, 0, 6, 9))  # 9: more than queries
    padded = pad_targets(goals, SIDES)
    assert padded.boxes.shape == (N, 9, 4)
    costs = matching_costs(logits, boxes, padded, *WEIGHTS)
    matched = match_queries(logits, boxes, padded, *WEIGHTS)
    assert costs.shape == (L, N, Q, 9)
    assert matched.shape == (L, N, Q)
    assert matched.dtype == torch.int64
    for layer in range(L):
        for n, goal in enumerate(goals):
            expected = slow_costs(logits[layer, n], boxes[layer, n], goal, SIDES[n])
            count = len(goal["labels"])
            torch.testing.assert_close(costs[layer, n, :, :count], expected)
            pairs = torch.full((Q,), BACKGROUND)
            query, box = linear_sum_assignment(expected)
            pairs[query] = torch.as_tensor(box)
            assert torch.equal(matched[layer, n], pairs)


def test_without_the_class_boxes_alone_decide():
    logits, boxes = predictions()
    padded = pad_targets(targets((3, 2, 6, 5)), SIDES)
    with_nan = match_queries(logits * float("nan"), boxes, padded, 0.0, 5.0, 2.0)
    assert torch.equal(with_nan, match_queries(logits * 0, boxes, padded, *WEIGHTS))


def test_no_boxes_at_all():
    logits, boxes = predictions()
    padded = pad_targets(targets((0, 0, 0, 0)), SIDES)
    assert padded.boxes.shape == (N, 1, 4)
    assert padded.labels.shape == (N, 1)
    assert (match_queries(logits, boxes, padded, *WEIGHTS) == BACKGROUND).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_predictions_that_are_no_numbers_are_matched_last(value):
    logits, boxes = predictions()
    logits[0, 0, :3], boxes[1, 0, :3] = value, value
    matched = match_queries(logits, boxes, pad_targets(targets((3, 2, 6, 5)), SIDES), *WEIGHTS)
    assert ((matched >= 0).sum(dim=2) == torch.tensor([3, 2, 6, 5])).all()
    assert (matched[1, 0, :3] == BACKGROUND).all()


def test_giou_is_torchvisions():
    torch.manual_seed(1)
    boxes, others = (torch.rand(n, 2, 2).sort(dim=1).values.flatten(1) for n in (7, 5))
    torch.testing.assert_close(pairwise_giou(boxes, others), generalized_box_iou(boxes, others))


def test_boxes_are_normalised_by_the_true_image():
    goals = targets((1, 0, 0, 0))
    goals[0] = {"boxes": torch.tensor([[10.0, 5, 50, 45]]), "labels": torch.tensor([2])}
    padded = pad_targets(goals, SIDES)  # an image 100 px wide and 50 px high
    torch.testing.assert_close(padded.boxes[0], torch.tensor([[0.3, 0.5, 0.4, 0.8]]))
    assert padded.labels[0].tolist() == [2]
    assert padded.counts == [1, 0, 0, 0]
