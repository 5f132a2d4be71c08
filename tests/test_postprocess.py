import torch
from torchvision.ops import box_iou

from models.postprocess import best_of_levels, suppress_duplicates, top_candidates


def test_top_candidates_by_hand():
    scores = torch.tensor([[0.9, 0.1], [0.3, 0.8], [0.2, 0.7], [0.6, 0.05], [0.5, 0.4]])
    values, index, labels = top_candidates(scores, [3, 2], threshold=0.2, limit=2)
    torch.testing.assert_close(values, torch.tensor([0.9, 0.8, 0.6, 0.5]))
    assert index.tolist() == [0, 1, 3, 4]
    assert labels.tolist() == [0, 1, 0, 0]


def test_top_candidates_equal_a_slow_loop():
    torch.manual_seed(0)
    scores, sizes = torch.rand(40, 3), [25, 10, 5]
    values, index, labels = top_candidates(scores, sizes, threshold=0.5, limit=9)
    expected, first = [], 0
    for size in sizes:
        level = [(scores[a, k].item(), a, k) for a in range(first, first + size) for k in range(3)]
        expected += sorted((s for s in level if s[0] > 0.5), reverse=True)[:9]
        first += size
    assert list(zip(values.tolist(), index.tolist(), labels.tolist(), strict=True)) == expected


def test_the_threshold_is_exclusive_and_may_leave_nothing():
    values, index, labels = top_candidates(torch.full((4, 2), 0.5), [3, 1], 0.5, 10)
    assert values.shape == index.shape == labels.shape == (0,)


def test_best_of_levels_equals_a_slow_loop():
    scores, sizes = torch.randn(40), [25, 10, 0, 5]
    expected, first = [], 0
    for size in sizes:
        level = range(first, first + size)
        expected += sorted(level, key=lambda a: -scores[a].item())[:9]
        first += size
    assert best_of_levels(scores, sizes, 9).tolist() == expected


def slow_nms(boxes, scores, labels, threshold):
    """Greedy suppression, one pair at a time."""
    kept = []
    for i in scores.argsort(descending=True).tolist():
        rivals = [j for j in kept if labels[j] == labels[i]]
        if all(box_iou(boxes[i : i + 1], boxes[j : j + 1]) <= threshold for j in rivals):
            kept.append(i)
    return kept


def test_suppression_equals_a_slow_loop():
    torch.manual_seed(0)
    corner = torch.rand(60, 2) * 50
    boxes = torch.cat((corner, corner + 10 + torch.rand(60, 2) * 30), dim=1)
    scores, labels = torch.rand(60), torch.randint(0, 3, (60,))
    found = suppress_duplicates(boxes, scores, labels, (100, 100), 0.5, 100)
    expected = slow_nms(boxes, scores, labels, 0.5)
    assert 10 < len(expected) < 60
    torch.testing.assert_close(found["boxes"], boxes[expected])
    assert torch.equal(found["scores"], scores[expected])
    assert torch.equal(found["labels"], labels[expected])


def test_boxes_are_clipped_to_the_true_image():
    boxes = torch.tensor([[-5.0, -6, 30, 40], [10, 10, 400, 500]])
    found = suppress_duplicates(
        boxes, torch.tensor([0.9, 0.8]), torch.tensor([0, 1]), (100, 200), 0.5, 10
    )
    assert found["boxes"].tolist() == [[0, 0, 30, 40], [10, 10, 200, 100]]


def test_slivers_are_dropped_only_if_asked():
    boxes = torch.tensor([[10.0, 10, 20, 20], [150, 10, 160, 20], [99.5, 10, 140, 20]])
    scores, labels = torch.tensor([0.9, 0.8, 0.7]), torch.tensor([0, 0, 0])
    arguments = (boxes, scores, labels, (100, 100), 0.5, 10)
    assert suppress_duplicates(*arguments)["scores"].tolist() == scores.tolist()
    kept = suppress_duplicates(*arguments, min_size=1.0)["boxes"]
    assert kept.tolist() == [[10, 10, 20, 20]]


def test_limit_keeps_the_best():
    boxes = torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30], [40, 40, 50, 50]])
    scores = torch.tensor([0.2, 0.9, 0.5])
    found = suppress_duplicates(boxes, scores, torch.zeros(3).long(), (100, 100), 0.5, 2)
    torch.testing.assert_close(found["scores"], torch.tensor([0.9, 0.5]))


def test_no_candidates():
    found = suppress_duplicates(
        torch.zeros(0, 4), torch.zeros(0), torch.zeros(0).long(), (10, 10), 0.5, 5, 1.0
    )
    assert found["boxes"].shape == (0, 4)
    assert found["scores"].shape == found["labels"].shape == (0,)
