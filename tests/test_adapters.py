"""Every embedding meets its own instance id: the FCOS adapter against a plain loop.

Legend: N images, A points, D embedding width.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from aligndet.adapters import FCOSAdapter, conv_projector, ids_of_matched
from models import ModelConfig, build_detector

WIDTH = 32
LEVEL_SIZES = [(8, 12), (4, 6), (2, 3), (1, 2), (1, 1)]  # of a 64 x 96 image, strides 8 to 128
BOXES = [
    torch.tensor([[4.0, 4, 90, 60], [10, 10, 30, 40], [50, 8, 94, 62]]),
    torch.tensor([[60.0, 30, 80, 50], [0, 0, 96, 64]]),
    torch.zeros(0, 4),
]
IDS = [torch.tensor([0, 1, 2]), torch.tensor([3, 256]), torch.zeros(0, dtype=torch.int64)]
SIZES = torch.tensor([[64, 96]] * 3)


class Fixed(nn.Module):
    """Gives the same result whatever it is asked."""

    def __init__(self, result):
        super().__init__()
        self.result = result

    def forward(self, x):
        return self.result


def adapter(samples=None):
    torch.manual_seed(0)
    options = {"channels": WIDTH, "num_convs": 1}
    detector = build_detector(ModelConfig(backbone="resnet18", options=options), num_classes=1)
    detector.backbone = None
    return FCOSAdapter(detector, WIDTH, samples)


def features(seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(64, 16, 24), (128, 8, 12), (256, 4, 6), (512, 2, 3)]
    return [torch.randn(3, *shape, generator=generator) for shape in shapes]


def id_by_loop(level, row, column, boxes, ids):
    """FCOS, section 3.1 with centre sampling, for one point: the id of its box or -1."""
    stride = 8 * 2**level
    x, y = (column + 0.5) * stride, (row + 0.5) * stride
    lower, upper = [(0, 64), (64, 128), (128, 256), (256, 512), (512, float("inf"))][level]
    best, best_area = -1, float("inf")
    for (x1, y1, x2, y2), instance in zip(boxes.tolist(), ids.tolist(), strict=True):
        sides = (x - x1, y - y1, x2 - x, y2 - y)
        central = max(abs(x - (x1 + x2) / 2), abs(y - (y1 + y2) / 2)) < 1.5 * stride
        area = (x2 - x1) * (y2 - y1)
        if min(sides) > 0 and central and lower <= max(sides) < upper and area < best_area:
            best, best_area = instance, area
    return best


def test_every_embedding_meets_the_id_of_its_image_and_position():
    model = adapter()
    # Instead of features, each position of each level of each image holds a code of its own.
    generator = torch.Generator().manual_seed(1)
    codes, expected, pyramid = [], [], []
    for level, (height, width) in enumerate(LEVEL_SIZES):
        maps = torch.zeros(3, WIDTH, height, width)
        for image in range(3):
            for row in range(height):
                for column in range(width):
                    code = F.normalize(torch.randn(WIDTH, generator=generator), dim=0)
                    maps[image, :, row, column] = code
                    codes.append(code)
                    expected.append(id_by_loop(level, row, column, BOXES[image], IDS[image]))
        pyramid.append(maps)
    model.detector.neck = Fixed(pyramid)
    model.detector.head.cls_tower = nn.Identity()
    model.detector.head.cls_logits = nn.Identity()
    output = model(features(), SIZES, BOXES, IDS, with_losses=False)

    similarity = output.embeddings @ torch.stack(codes).T
    best, place = similarity.max(dim=1)
    torch.testing.assert_close(best, torch.ones_like(best))  # each embedding is one of the codes
    assert sorted(place.tolist()) == list(range(len(codes)))  # and none is missing
    assert output.ids.tolist() == [expected[p] for p in place.tolist()]
    assert {0, 1, 2, 3, 256, -1} == set(expected)
    assert output.positives == sum(i >= 0 for i in expected)


def test_embeddings_have_unit_length_and_samples_are_limited():
    output = adapter(samples=20)(features(), SIZES, BOXES, IDS, with_losses=False)
    assert output.embeddings.shape == (20, WIDTH)
    torch.testing.assert_close(output.embeddings.norm(dim=1), torch.ones(20))
    assert output.losses == {}
    assert (output.ids >= 0).sum() == min(20, output.positives)


def test_sample_default_is_the_paper_number():
    assert adapter().samples == 2048
    assert adapter(samples=7).samples == 7


def test_box_losses_are_those_of_the_detector():
    model = adapter()
    output = model(features(), SIZES, BOXES, IDS, with_losses=True)
    detector = model.detector
    pyramid = detector.neck(features()[1:])
    points, strides = detector.points_for(pyramid)
    distances, centerness = detector.head.boxes_from(detector.head.towers(pyramid)[1])
    matched = detector.assign(points, strides, BOXES)
    expected = detector.box_losses(distances, centerness, points, matched, BOXES)
    assert output.losses.keys() == expected.keys() == {"loss_box", "loss_centerness"}
    for name, value in expected.items():
        torch.testing.assert_close(output.losses[name], value)


def test_the_place_of_an_image_in_the_batch_does_not_matter():
    """It changes the order of the samples, nothing else."""
    model = adapter()
    order = [2, 0, 1]
    straight = model(features(), SIZES, BOXES, IDS, with_losses=False)
    moved = model(
        [f[order] for f in features()],
        SIZES,
        [BOXES[i] for i in order],
        [IDS[i] for i in order],
        with_losses=False,
    )
    for instance in (0, 1, 2, 3, 256):
        ours = straight.embeddings[straight.ids == instance]
        theirs = moved.embeddings[moved.ids == instance]
        assert len(ours) > 0
        torch.testing.assert_close(ours, theirs)


def test_ids_of_matched_by_hand():
    matched = torch.tensor([[0, -1, 2, -2], [1, 1, -1, 0]])
    ids = [torch.tensor([5, 6, 7]), torch.tensor([256, 9])]
    before = matched.clone()
    assert ids_of_matched(matched, ids).tolist() == [[5, -1, 7, -2], [9, 9, -1, 256]]
    assert torch.equal(matched, before)
    with pytest.raises(ValueError, match="zip"):
        ids_of_matched(matched, ids[:1])


def test_projector_is_conv_relu_conv_with_the_reach_of_the_classifier():
    projector = conv_projector(8, 5)
    x = torch.zeros(1, 8, 7, 7, requires_grad=True)
    out = projector(x + 1.0)
    assert out.shape == (1, 5, 7, 7)
    out[0, :, 3, 3].sum().backward()
    rows, columns = x.grad[0].abs().sum(dim=0).nonzero().unbind(dim=1)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (2, 4, 2, 4)
