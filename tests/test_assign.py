import pytest
import torch
from torchvision.models.detection._utils import Matcher
from torchvision.models.detection.fcos import FCOS, FCOSHead
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou

from models.anchors import grid_points
from models.assign import (
    BACKGROUND,
    BOXES_AT_ONCE,
    IGNORE,
    assign_by_iou,
    assign_points,
    find_positives,
    look_up,
    reach_bounds,
)

INF = float("inf")


def assign(points, boxes, strides=None, lower=0.0, upper=INF, radius=None):
    """`assign_points` on lists, with the same bounds for all points."""
    points = torch.tensor(points, dtype=torch.float32)
    count = len(points)
    strides = torch.full((count,), 8.0) if strides is None else torch.tensor(strides)
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    bounds = torch.full((count,), lower), torch.full((count,), upper)
    return assign_points(points, strides, *bounds, boxes, radius).tolist()


def slow_assign(points, strides, lower, upper, boxes, radius):
    """FCOS, sections 3.1 and 3.2, one point and one box at a time."""
    result = []
    for (x, y), stride, low, high in zip(points.tolist(), strides, lower, upper, strict=True):
        best, best_area = BACKGROUND, INF
        for index, (x1, y1, x2, y2) in enumerate(boxes.tolist()):
            sides = (x - x1, y - y1, x2 - x, y2 - y)
            inside = min(sides) > 0
            in_range = low <= max(sides) < high
            off_center = max(abs(x - (x1 + x2) / 2), abs(y - (y1 + y2) / 2))
            central = radius is None or off_center < radius * stride
            area = (x2 - x1) * (y2 - y1)
            if inside and in_range and central and area < best_area:
                best, best_area = index, area
        result.append(best)
    return torch.tensor(result)


def random_boxes(count, size, seed):
    generator = torch.Generator().manual_seed(seed)
    center = torch.rand(count, 2, generator=generator) * size
    half = torch.rand(count, 2, generator=generator).pow(2) * size / 2 + 2
    return torch.cat((center - half, center + half), dim=1)


def pyramid(offset=0.5):
    sizes = [(32, 32), (16, 16), (8, 8), (4, 4), (2, 2)]
    points, strides = grid_points(sizes, [8, 16, 32, 64, 128], offset)
    return points, strides, *reach_bounds(strides)


def test_constants_are_not_indices():
    assert BACKGROUND == -1
    assert IGNORE == -2


def test_inside_is_strict():
    box = [[10, 10, 20, 30]]
    points = [[15, 20], [10, 20], [20, 20], [15, 10], [15, 30], [11, 29], [9, 20]]
    assert assign(points, box) == [0, -1, -1, -1, -1, 0, -1]


def test_the_smallest_of_overlapping_boxes_wins():
    boxes = [[0, 0, 100, 100], [40, 40, 60, 60], [30, 30, 80, 80]]
    assert assign([[50, 50], [35, 35], [10, 10], [70, 70]], boxes) == [1, 2, 0, 2]


def test_the_first_of_equal_areas_wins():
    boxes = [[0, 0, 40, 10], [0, 0, 20, 20], [0, 0, 10, 40]]
    assert assign([[5, 5], [15, 15]], boxes) == [0, 1]


def test_center_sampling():
    # The centre is (50, 50); the radius of 1.5 strides of 8 px is 12 px in x and in y.
    points = [[50, 50], [61, 61], [62, 50], [50, 38.5], [30, 50]]
    assert assign(points, [[0, 0, 100, 100]], radius=1.5) == [0, 0, -1, 0, -1]


def test_center_region_ends_at_the_sides_of_a_small_box():
    assert assign([[54, 50], [57, 50]], [[45, 45, 55, 55]], radius=1.5) == [0, -1]


def test_center_radius_grows_with_the_stride():
    points = [[70, 50], [70, 50]]
    assert assign(points, [[0, 0, 100, 100]], strides=[8.0, 16.0], radius=1.5) == [-1, 0]


def test_level_range_is_half_open():
    # At (50, 50) the farthest side is 64 px away, which belongs to 64..128 and not to 0..64.
    box = [[40, 40, 114, 60]]
    assert assign([[50, 50]], box, lower=64.0, upper=128.0) == [0]
    assert assign([[50, 50]], box, lower=0.0, upper=64.0) == [-1]


def test_a_smaller_box_out_of_range_does_not_shadow_a_larger_one():
    boxes = [[45, 45, 55, 55], [0, 0, 150, 150]]
    assert assign([[50, 50]], boxes, lower=64.0, upper=128.0) == [1]


def test_bounds_by_level():
    strides = torch.tensor([8.0, 16.0, 16.0, 32.0, 64.0, 128.0])
    lower, upper = reach_bounds(strides)
    assert lower.tolist() == [0, 64, 64, 128, 256, 512]
    assert upper.tolist() == [64, 128, 128, 256, 512, INF]
    assert [b.tolist() for b in reach_bounds(torch.tensor([16.0]))] == [[0], [INF]]
    assert reach_bounds(strides, 4.0)[1].tolist() == [32, 64, 64, 128, 256, INF]


def test_no_boxes():
    points, strides, lower, upper = pyramid()
    matched = assign_points(points, strides, lower, upper, torch.zeros(0, 4), 1.5)
    assert matched.dtype == torch.int64
    assert matched.tolist() == [BACKGROUND] * len(points)


def test_boxes_without_area_match_nothing():
    assert assign([[50, 50]], [[50, 50, 50, 50], [20, 50, 80, 50], [60, 60, 40, 40]]) == [-1]


@pytest.mark.parametrize("radius", [None, 1.5])
@pytest.mark.parametrize("seed", range(5))
def test_equals_a_slow_loop(radius, seed):
    points, strides, lower, upper = pyramid()
    boxes = random_boxes(12, 256, seed)
    matched = assign_points(points, strides, lower, upper, boxes, radius)
    assert matched.shape == (len(points),)
    assert (matched >= 0).any()
    assert torch.equal(matched, slow_assign(points, strides, lower, upper, boxes, radius))


class Recorder(FCOSHead):
    """Torchvision's head, which records what it is asked to compute the loss for."""

    def compute_loss(self, targets, head_outputs, anchors, matched_idxs):
        return {"matched": torch.stack(matched_idxs)}


def test_equals_torchvision():
    backbone = torch.nn.Identity()
    backbone.out_channels = 32
    model = FCOS(backbone, num_classes=3, head=Recorder(32, 1, 3))
    sizes = [(32, 32), (16, 16), (8, 8), (4, 4), (2, 2)]
    images = ImageList(torch.zeros(1, 3, 256, 256), [(256, 256)])
    anchors = model.anchor_generator(images, [torch.zeros(1, 1, h, w) for h, w in sizes])
    counts = [h * w for h, w in sizes]
    points, strides, lower, upper = pyramid(offset=0.0)
    for seed in range(10):
        boxes = random_boxes(10, 256, seed)
        expected = model.compute_loss([{"boxes": boxes}], {}, anchors, counts)["matched"][0]
        assert torch.equal(assign_points(points, strides, lower, upper, boxes, 1.5), expected)


def test_many_points_and_boxes():
    points, strides = grid_points([(100, 150), (50, 75), (25, 38)], [8, 16, 32], 0.5)
    boxes = random_boxes(300, 1000, 0)
    matched = assign_points(points, strides, *reach_bounds(strides), boxes, None)
    assert matched.shape == (19700,)
    assert matched.min() == -1
    assert matched.max() <= 299


def by_iou(anchors, boxes, foreground=0.5, background=0.4, low_quality=False):
    anchors = torch.tensor(anchors, dtype=torch.float32).reshape(-1, 4)
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return assign_by_iou(anchors, boxes, foreground, background, low_quality).tolist()


def test_thresholds_of_the_iou():
    # All but the last have the box's width: the IoUs are 1, 0.5, 0.45, 0.4, 0.39 and 0.
    anchors = [[0, 0, 10, h] for h in (10, 5, 4.5, 4, 3.9)] + [[50, 50, 60, 60]]
    assert by_iou(anchors, [[0, 0, 10, 10]]) == [0, 0, IGNORE, IGNORE, BACKGROUND, BACKGROUND]


def test_the_box_that_overlaps_most_wins():
    boxes = [[0, 0, 10, 6], [0, 0, 10, 8], [0, 0, 10, 8], [0, 0, 10, 20]]
    assert by_iou([[0, 0, 10, 10]], boxes) == [1]


def test_low_quality_matches():
    # No anchor overlaps the box of 3 x 3 enough; three contain it equally well.
    anchors = [[0, 0, 10, 10], [2, 0, 12, 10], [3, 0, 13, 10], [30, 30, 40, 40]]
    small = [[4, 4, 7, 7]]
    assert by_iou(anchors, small) == [-1, -1, -1, -1]
    assert by_iou(anchors, small, low_quality=True) == [0, 0, 0, -1]
    # A promoted anchor still answers for the box that it overlaps most itself.
    assert by_iou([[0, 0, 10, 10]], [[0, 0, 3, 3], [0, 0, 10, 9]], low_quality=True) == [1]
    # An anchor between the thresholds is promoted too.
    assert by_iou([[0, 0, 10, 4.5]], [[0, 0, 10, 10]], low_quality=True) == [0]


def test_a_box_that_overlaps_no_anchor_promotes_none():
    anchors = [[0, 0, 10, 10], [20, 20, 30, 30]]
    assert by_iou(anchors, [[50, 50, 60, 60]], low_quality=True) == [-1, -1]
    without_area = [[5, 5, 5, 5], [5, 2, 5, 8], [0, 0, 10, 10]]
    assert by_iou(anchors, without_area, low_quality=True) == [2, -1]
    assert by_iou([[5, 5, 5, 5]], [[5, 5, 5, 5]], low_quality=True) == [-1]


def slow_assign_by_iou(anchors, boxes, foreground, background, low_quality):
    """Faster R-CNN, section 3.1.2, one pair at a time."""
    iou = box_iou(boxes, anchors).tolist()
    result = []
    for a in range(len(anchors)):
        column = [row[a] for row in iou]
        best = max(column)
        match = column.index(best)
        is_best = any(row[a] == max(row) > 0 for row in iou)
        if not (best >= foreground or (low_quality and is_best)):
            match = IGNORE if best >= background else BACKGROUND
        result.append(match)
    return torch.tensor(result)


@pytest.mark.parametrize("low_quality", [True, False])
@pytest.mark.parametrize(("foreground", "background"), [(0.5, 0.4), (0.7, 0.3), (0.5, 0.5)])
def test_assign_by_iou_equals_a_slow_loop_and_torchvision(foreground, background, low_quality):
    for seed, count in enumerate((1, 9, 2 * BOXES_AT_ONCE + 5)):
        anchors = random_boxes(120, 256, seed + 10)
        boxes = torch.cat((random_boxes(count, 256, seed), anchors[:3] + 5, anchors[3:6]))
        matched = assign_by_iou(anchors, boxes, foreground, background, low_quality)
        assert {BACKGROUND, IGNORE} & set(matched.tolist())
        slow = slow_assign_by_iou(anchors, boxes, foreground, background, low_quality)
        assert torch.equal(matched, slow)
        matcher = Matcher(foreground, background, allow_low_quality_matches=low_quality)
        iou = box_iou(boxes, anchors)
        assert (iou.max(dim=1).values > 0).all()  # else torchvision promotes all anchors
        assert torch.equal(matched, matcher(iou))


def test_assign_by_iou_without_boxes_or_anchors():
    anchors, nothing = random_boxes(5, 100, 0), torch.zeros(0, 4)
    for low_quality in (True, False):
        assert assign_by_iou(anchors, nothing, 0.5, 0.4, low_quality).tolist() == [-1] * 5
        none = assign_by_iou(nothing, anchors, 0.5, 0.4, low_quality)
        assert none.shape == (0,)
        assert none.dtype == torch.int64


LABELS = [torch.tensor([10, 11]), torch.zeros(0, dtype=torch.int64), torch.tensor([20])]
MATCHED = torch.tensor([[1, -1, 0, 1], [-1, -1, -2, -1], [-2, 0, -1, -1]])


def test_look_up_by_hand():
    before = MATCHED.clone()
    rows = [row.tolist() for row in look_up(LABELS, MATCHED)]
    assert rows == [[11, -1, 10, 11], [-1, -1, -2, -1], [-2, 20, -1, -1]]
    shorter = look_up(LABELS, [MATCHED[0], MATCHED[1, :2], MATCHED[2, :0]])
    assert [row.tolist() for row in shorter] == [[11, -1, 10, 11], [-1, -1], []]
    assert torch.equal(MATCHED, before)
    with pytest.raises(ValueError, match="zip"):
        look_up(LABELS[:1], MATCHED)


def test_find_positives_by_hand():
    index, box = find_positives(MATCHED, LABELS)
    assert index.tolist() == [0, 2, 3, 9]
    assert torch.cat(LABELS)[box].tolist() == [11, 10, 11, 20]
    index, box = find_positives([MATCHED[0, 1:], MATCHED[1, :2], MATCHED[2]], LABELS)
    assert index.tolist() == [1, 2, 6]
    assert box.tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="zip"):
        find_positives(MATCHED, LABELS[:1])


def test_find_positives_where_there_are_none():
    index, box = find_positives(MATCHED[1:2], LABELS[1:2])
    assert index.shape == box.shape == (0,)
    assert index.dtype == box.dtype == torch.int64
