"""Queries that are boxes, against plain loops."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

from models import anchor_queries
from models.anchor_queries import SIDE, AnchorQueries, Map, anchor_grid, nearness
from tests.helpers.labelled_batch import SIZES, K, batch
from tests.helpers.small_detr import small_detr

ANCHORS = torch.tensor([[0.5, 0.25, 0.2, 0.4], [0.1, 0.9, 0.6, 0.3]], dtype=torch.float64)


def test_the_grid_covers_the_image():
    anchors = anchor_grid(6).sigmoid()  # three columns, two rows
    centres = [(x / 6, y / 4) for y in (1, 3) for x in (1, 3, 5)]
    torch.testing.assert_close(anchors[:, :2], torch.tensor(centres))
    assert torch.allclose(anchors[:, 2:], torch.tensor(SIDE))
    for count in (1, 2, 7, 25, 100):
        anchors = anchor_grid(count).sigmoid()
        assert anchors.shape == (count, 4)
        assert len({tuple(a) for a in anchors.tolist()}) == count
        assert ((anchors > 0) & (anchors < 1)).all()


def cells_of(heights, widths, size, stride, width=8):
    """A map that shows nothing."""
    number = size[0] * size[1]
    nothing = torch.zeros(len(heights), number, width)
    inside = torch.ones(len(heights), number, dtype=torch.bool)
    return Map(nothing, nothing, inside, torch.tensor(heights), torch.tensor(widths), size, stride)


def test_nearness_is_a_gaussian_of_a_slow_loop():
    """Around a place of each head, on the ellipse in the anchor."""
    heights, widths, stride = [40, 33], [64, 20], 16
    anchors = torch.stack([ANCHORS, ANCHORS.flip(0)]).logit()
    found = nearness(anchors, 4, cells_of(heights, widths, (3, 4), stride))
    assert found.shape == (2, 4, 2, 12)
    for n, head, q, cell in itertools.product(range(2), range(4), range(2), range(12)):
        cx, cy, w, h = anchors[n, q].sigmoid().tolist()
        row, column = divmod(cell, 4)
        right, below = ((1, 0), (0, 1), (-1, 0), (0, -1))[head]
        dx = (column + 0.5) * stride / widths[n] - (cx + right * w / 2)
        dy = (row + 0.5) * stride / heights[n] - (cy + below * h / 2)
        expected = -(dx**2) / (2 * (w / 4) ** 2) - dy**2 / (2 * (h / 4) ** 2)
        assert found[n, head, q, cell].item() == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_places_are_encoded_number_by_number():
    queries = AnchorQueries(8, heads=2)
    seen = {}
    queries.encoding.register_forward_pre_hook(lambda m, args: seen.update(waves=args[0]))
    assert queries.encode(ANCHORS.logit().float()[None]).shape == (1, 2, 8)
    for anchor, waves in zip(ANCHORS.tolist(), seen["waves"][0].tolist(), strict=True):
        expected = []
        for number in anchor:
            for pair in (0, 1):
                angle = 2 * math.pi * number / 10_000 ** (2 * pair / 4)
                expected += [math.sin(angle), math.cos(angle)]
        assert waves == pytest.approx(expected, abs=1e-5)


def test_boxes_start_as_the_anchors():
    model = small_detr(K, anchors=True, queries=6)
    output = model.predictions(batch(), *SIZES.unbind(1))
    torch.testing.assert_close(
        output.boxes, anchor_grid(6).sigmoid().expand_as(output.boxes), rtol=0, atol=1e-6
    )


def test_every_layer_changes_the_boxes_of_the_one_before_and_looks_there(monkeypatch):
    model = small_detr(K, anchors=True, decoder_layers=3).eval()
    nn.init.normal_(model.box_regression[4].weight)
    seen = []

    def watched(anchors, *args):
        seen.append(anchors)
        return nearness(anchors, *args)

    monkeypatch.setattr(anchor_queries, "nearness", watched)
    output = model.predictions(batch(), *SIZES.unbind(1))
    boxes = model.query_embedding.weight.expand(2, -1, -1)
    for layer in range(3):
        torch.testing.assert_close(seen[layer], boxes)
        boxes = boxes + model.box_regression(output.decoded[layer])
        torch.testing.assert_close(output.boxes[layer], boxes.sigmoid())


def test_a_layer_answers_for_its_own_change_of_the_boxes():
    """The loss of the second layer's boxes does not reach the first through its boxes."""
    model = small_detr(K, anchors=True, decoder_layers=2)
    output = model.predictions(batch(), *SIZES.unbind(1))
    (gradient,) = torch.autograd.grad(
        output.boxes[1].sum(), model.query_embedding.weight, retain_graph=True, allow_unused=True
    )
    assert gradient is None or not gradient.any()
    assert torch.autograd.grad(output.boxes[0].sum(), model.query_embedding.weight)[0].all()


def test_an_object_looks_where_its_anchor_is():
    """With anchors that are specks, a change in one cell reaches one object of the first layer."""
    model = small_detr(K, anchors=True, queries=4, encoder_layers=0, decoder_layers=1).eval()
    with torch.no_grad():
        model.query_embedding.weight[:, 2:] = math.log(0.01)
    heights, widths = torch.tensor([64]), torch.tensor([64])
    features = [torch.zeros(1, 8, 64 // s, 64 // s) for s in (4, 8, 16, 32)]
    plain = model.decode(features, heights, widths).decoded[0, 0]
    features[3][0, :, 1, 0] = 3.0  # below on the left: the third anchor of the grid
    changed = model.decode(features, heights, widths).decoded[0, 0]
    moved = (changed - plain).abs().amax(dim=1) > 1e-6
    assert moved.tolist() == [False, False, True, False]
