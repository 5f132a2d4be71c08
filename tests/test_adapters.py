"""Every embedding meets its own instance id: each adapter against a plain loop.

Three images padded to one size, with different numbers of boxes; one has none.

Legend: N images, A points or anchors, R RoIs, B anchors per cell, D embedding width.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from aligndet import projectors
from aligndet.adapters import ADAPTERS
from models import build_detector
from models.faster_rcnn import add_boxes
from tests.helpers.small_detectors import BOX_LOSSES, OPTIONS, model_config

WIDTH = 32
LEVEL_SIZES = [(8, 12), (4, 6), (2, 3), (1, 2), (1, 1)]  # of a 64 x 96 batch, strides 8 to 128
BOXES = [
    torch.tensor([[4.0, 4, 90, 60], [10, 10, 30, 40], [50, 8, 94, 62]]),
    torch.tensor([[51.0, 20, 70, 43], [1, 2, 72, 49]]),
    torch.zeros(0, 4),
]
IDS = [torch.tensor([0, 1, 2]), torch.tensor([3, 256]), torch.zeros(0, dtype=torch.int64)]
SIZES = torch.tensor([[64, 96], [50, 73], [64, 96]])


class Fixed(nn.Module):
    """Gives the same result for any input."""

    def __init__(self, result):
        super().__init__()
        self.result = result

    def forward(self, x):
        return self.result


def adapter(name, samples=None):
    torch.manual_seed(0)
    detector = build_detector(model_config(name), num_classes=1)
    detector.backbone = None
    return ADAPTERS[name](detector, WIDTH, samples)


def features(seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(64, 16, 24), (128, 8, 12), (256, 4, 6), (512, 2, 3)]
    return [torch.randn(3, *shape, generator=generator) for shape in shapes]


def run(model, with_losses=False, order=(0, 1, 2)):
    """The batch above, or its images in another order."""
    order = list(order)
    view = {"image_sizes": SIZES[order], "boxes": [BOXES[i] for i in order]}
    ids = [IDS[i] for i in order]
    return model([f[order] for f in features()], view, ids, with_losses=with_losses)


def cells():
    """Image, level, row and column of every cell, in the order in which predictions are listed."""
    return [
        (image, level, row, column)
        for image in range(3)
        for level, (height, width) in enumerate(LEVEL_SIZES)
        for row in range(height)
        for column in range(width)
    ]


def code_pyramid():
    """A pyramid in which each cell of each level of each image holds a code of its own."""
    generator = torch.Generator().manual_seed(1)
    pyramid = [torch.zeros(3, WIDTH, *size) for size in LEVEL_SIZES]
    codes = {}
    for cell in cells():
        image, level, row, column = cell
        codes[cell] = F.normalize(torch.rand(WIDTH, generator=generator), dim=0)
        pyramid[level][image, :, row, column] = codes[cell]
    return pyramid, codes


def places(embeddings, codes):
    """The place of each embedding among the codes; each must be one of them."""
    best, place = (embeddings @ torch.stack(codes).T).max(dim=1)
    torch.testing.assert_close(best, torch.ones_like(best))
    return place.tolist()


def iou(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    overlap = max(width, 0) * max(height, 0)
    areas = [(x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in (a, b)]
    return overlap / (sum(areas) - overlap)


def point_id(cell):
    """FCOS, section 3.1 with centre sampling, for one point: the id of its box or -1."""
    image, level, row, column = cell
    stride = 8 * 2**level
    x, y = (column + 0.5) * stride, (row + 0.5) * stride
    lower, upper = [(0, 64), (64, 128), (128, 256), (256, 512), (512, float("inf"))][level]
    best, best_area = -1, float("inf")
    for (x1, y1, x2, y2), instance in zip(BOXES[image].tolist(), IDS[image].tolist(), strict=True):
        sides = (x - x1, y - y1, x2 - x, y2 - y)
        central = max(abs(x - (x1 + x2) / 2), abs(y - (y1 + y2) / 2)) < 1.5 * stride
        area = (x2 - x1) * (y2 - y1)
        if min(sides) > 0 and central and lower <= max(sides) < upper and area < best_area:
            best, best_area = instance, area
    return best


def test_every_point_meets_the_id_of_its_image_and_position():
    model = adapter("fcos")
    pyramid, codes = code_pyramid()
    model.detector.neck = Fixed(pyramid)
    model.detector.head.cls_tower = nn.Identity()
    model.projector = nn.Identity()
    output = run(model)
    expected = [point_id(cell) for cell in cells()]
    found = places(output.embeddings, list(codes.values()))
    assert sorted(found) == list(range(len(codes)))  # none is missing
    assert output.ids.tolist() == [expected[place] for place in found]
    assert {0, 1, 2, 3, 256, -1} == set(expected)
    assert model.statistics(output.matched)["positives"] == sum(i >= 0 for i in expected)


def anchor_ids():
    """RetinaNet, section 4, by loop: for every anchor the id of its box, -1, or -2 (ignored)."""
    anchors = []  # of one image
    for _, level, row, column in cells()[: len(cells()) // 3]:
        stride = 8 * 2**level
        for ratio in (0.5, 1.0, 2.0):
            for scale in range(3):
                size = 4 * stride * 2 ** (scale / 3)
                width, height = size / ratio**0.5, size * ratio**0.5
                x, y = column * stride, row * stride
                anchors.append((x - width / 2, y - height / 2, x + width / 2, y + height / 2))
    result = []
    for boxes, ids in zip(BOXES, IDS, strict=True):
        table = [[iou(anchor, box) for box in boxes.tolist()] for anchor in anchors]
        top = [max(column) for column in zip(*table, strict=True)]  # best IoU of each box
        for row in table:
            best = max(row, default=0.0)
            promoted = any(value > t - 1e-6 for value, t in zip(row, top, strict=True))
            if best >= 0.5 or promoted:
                result.append(ids[row.index(best)].item())
            else:
                result.append(-1 if best < 0.4 else -2)
    return result


def embedded_anchors():
    """The output of RetinaNet's adapter, and the anchor that each embedding comes from."""
    model = adapter("retinanet")
    pyramid, codes = code_pyramid()
    model.detector.neck = Fixed(pyramid)
    head = model.detector.head
    head.cls_tower = nn.Identity()
    # A projector that rotates the code of a cell, differently for each of its anchors.
    convolution, _, linear = model.projector.layers
    nn.init.dirac_(convolution.weight)
    turns = [torch.linalg.qr(torch.randn(WIDTH, WIDTH))[0] for _ in range(9)]
    linear.weight.data = torch.cat(turns)
    turned = [turn @ code for code in codes.values() for turn in turns]
    output = run(model)
    return output, places(output.embeddings, turned)


def test_every_anchor_meets_the_id_of_its_image_and_position():
    output, found = embedded_anchors()
    expected = anchor_ids()
    assert sorted(found) == [p for p, i in enumerate(expected) if i != -2]  # all but the ignored
    assert output.ids.tolist() == [expected[place] for place in found]
    assert {0, 1, 2, 3, 256, -1, -2} == set(expected)
    statistics = adapter("retinanet").statistics(output.matched)
    assert statistics["positives"] == sum(i >= 0 for i in expected)


def test_features_level_by_level_against_labels_image_by_image_are_noticed(monkeypatch):
    """With the authors' order of the features, the check of the ids above does not pass."""

    def level_by_level(maps, per_cell):
        flat = [x.permute(0, 2, 3, 1).reshape(-1, x.shape[1] // per_cell) for x in maps]
        return torch.cat(flat).unflatten(0, (len(maps[0]), -1))

    monkeypatch.setattr(projectors, "flatten_predictions", level_by_level)
    output, found = embedded_anchors()
    expected = anchor_ids()
    # The finest level of the first image keeps its place; nothing else does.
    second = [(p, i) for p, i in zip(found, output.ids.tolist(), strict=True) if i in (3, 256)]
    assert len(second) > 20
    assert sum(expected[place] == instance for place, instance in second) < len(second) / 10


def test_every_roi_meets_the_id_of_its_image_and_box(monkeypatch):
    model = adapter("faster_rcnn")
    detector = model.detector
    # The features of an RoI are its place and its image, so that its embedding identifies it.
    monkeypatch.setattr(detector.roi_head, "box_features", place_of_rois)
    model.projector = nn.Identity()
    output = run(model)

    pyramid = detector.neck(features())
    limits = (detector.config.topk_train, detector.config.proposals_train)
    proposed = detector.rpn.propose(detector.rpn(pyramid), SIZES, *limits)
    expected = []
    for image, rois in enumerate(add_boxes(proposed, BOXES)):
        for roi in rois.tolist():
            overlaps = [iou(roi, box) for box in BOXES[image].tolist()]
            if max(overlaps, default=0.0) >= 0.5:
                instance = IDS[image][overlaps.index(max(overlaps))].item()
                expected.append(([image, *roi], instance))
    found = output.embeddings / output.embeddings[:, 5:]
    found = [
        ([round(e[4]), *e[:4]], i) for e, i in zip(found.tolist(), output.ids.tolist(), strict=True)
    ]
    for (ours, our_id), (theirs, their_id) in zip(found, expected, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-3)
        assert our_id == their_id
    assert {i for _, i in found} == {0, 1, 2, 3, 256}  # the boxes are RoIs
    assert len(found) > 5  # and so are boxes that the RPN found
    assert model.statistics(output.matched)["positives"] == len(found)


def place_of_rois(_, rois):
    """Corners, image and 1, of the RoIs (R, 4) of each image."""
    numbered = [F.pad(r, (0, 1), value=n) for n, r in enumerate(rois)]
    return F.pad(torch.cat(numbered), (0, 1), value=1.0)


@pytest.mark.parametrize(("name", "number"), [("fcos", 1), ("retinanet", 3), ("faster_rcnn", 3)])
def test_samples_are_limited_in_the_batch_or_in_each_image(name, number):
    output = run(adapter(name, samples=3))
    if name == "faster_rcnn":  # no background
        number -= 1
    assert len(output.ids) == number * 3
    assert output.embeddings.shape == (number * 3, WIDTH)
    torch.testing.assert_close(output.embeddings.norm(dim=1), torch.ones(number * 3))
    assert output.losses == {}
    if name != "faster_rcnn":
        in_boxes = 3 if name == "fcos" else 6  # positives first
        assert (output.ids >= 0).sum() == in_boxes


def test_sample_defaults_are_the_paper_numbers():
    numbers = {name: adapter(name).samples for name in OPTIONS if name != "detr"}
    assert numbers == {"fcos": 2048, "retinanet": 2048, "faster_rcnn": 4096, "mask_rcnn": 4096}
    assert adapter("fcos", samples=7).samples == 7


def fcos_losses(detector):
    pyramid = detector.neck(features()[1:])
    points, strides = detector.points_for(pyramid)
    distances, centerness = detector.head.boxes_from(detector.head.towers(pyramid)[1])
    matched = detector.assign(points, strides, BOXES)
    return detector.box_losses(distances, centerness, points, matched, BOXES)


def retinanet_losses(detector):
    pyramid = detector.neck(features()[1:])
    anchors = detector.anchors_for(pyramid)
    deltas = detector.head.deltas_from(detector.head.towers(pyramid)[1])
    return detector.box_losses(deltas, anchors, detector.assign(anchors, BOXES), BOXES)


def faster_rcnn_losses(detector):
    pyramid = detector.neck(features())
    proposed = detector.rpn(pyramid)
    limits = (detector.config.topk_train, detector.config.proposals_train)
    rois = add_boxes(detector.rpn.propose(proposed, SIZES, *limits), BOXES)
    matched = detector.roi_head.assign(rois, BOXES)
    rois = [r[m >= 0] for r, m in zip(rois, matched, strict=True)]
    matched = [m[m >= 0] for m in matched]
    deltas = detector.roi_head.deltas_from(detector.roi_head.box_features(pyramid[:-1], rois))
    losses = detector.rpn.losses(proposed, BOXES)
    return losses | detector.roi_head.box_losses(deltas, rois, matched, BOXES)


@pytest.mark.usefixtures("double_precision")
@pytest.mark.parametrize(
    ("name", "losses_of"),
    [("fcos", fcos_losses), ("retinanet", retinanet_losses), ("faster_rcnn", faster_rcnn_losses)],
)
def test_box_losses_are_those_of_the_detector(name, losses_of):
    model = adapter(name)
    output = run(model, with_losses=True)
    expected = losses_of(model.detector)
    assert output.losses.keys() == expected.keys() == BOX_LOSSES[name]
    for key, value in expected.items():
        assert value > 0
        torch.testing.assert_close(output.losses[key], value)


@pytest.mark.usefixtures("double_precision")  # else rounding may change the order of RoIs
@pytest.mark.parametrize("name", ADAPTERS)
def test_the_place_of_an_image_in_the_batch_does_not_matter(name):
    """It only changes the order of the samples."""
    model = adapter(name)
    straight, moved = run(model), run(model, order=(2, 0, 1))
    for instance in (0, 1, 2, 3, 256):
        ours = straight.embeddings[straight.ids == instance]
        theirs = moved.embeddings[moved.ids == instance]
        assert len(ours) > 0
        torch.testing.assert_close(ours, theirs)
