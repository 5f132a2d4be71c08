"""Queries that are boxes, against plain loops."""

from __future__ import annotations

import math

import pytest
import torch

from models.anchor_queries import SIDE, AnchorEncoding, anchor_grid, nearness
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


def test_nearness_is_a_gaussian_of_a_slow_loop():
    heights, widths, stride = torch.tensor([40, 33]), torch.tensor([64, 20]), 16
    found = nearness(ANCHORS.logit(), heights, widths, (3, 4), stride)
    assert found.shape == (2, 2, 12)
    for n, (height, width) in enumerate(zip(heights.tolist(), widths.tolist(), strict=True)):
        for q, (cx, cy, w, h) in enumerate(ANCHORS.tolist()):
            for row in range(3):
                for column in range(4):
                    dx = (column + 0.5) * stride / width - cx
                    dy = (row + 0.5) * stride / height - cy
                    expected = math.log(
                        math.exp(-(dx**2) / (2 * (w / 2) ** 2) - dy**2 / (2 * (h / 2) ** 2))
                    )
                    value = found[n, q, 4 * row + column].item()
                    assert value == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_places_are_encoded_number_by_number():
    encoding = AnchorEncoding(8)
    seen = {}
    encoding.layers.register_forward_pre_hook(lambda m, args: seen.update(waves=args[0]))
    assert encoding(ANCHORS.logit().float()).shape == (2, 8)
    for anchor, waves in zip(ANCHORS.tolist(), seen["waves"].tolist(), strict=True):
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


def test_an_object_looks_where_its_anchor_is():
    """With anchors that are specks, a change in one cell reaches one object of the first layer."""
    model = small_detr(K, anchors=True, queries=4, encoder_layers=0, decoder_layers=1).eval()
    with torch.no_grad():
        model.query_embedding.weight[:, 2:] = math.log(0.01)
    heights, widths = torch.tensor([64]), torch.tensor([64])
    features = [torch.zeros(1, 8, 64 // s, 64 // s) for s in (4, 8, 16, 32)]
    plain = model.decode(features, heights, widths)[0, 0]
    features[3][0, :, 1, 0] = 3.0  # below on the left: the third anchor of the grid
    changed = model.decode(features, heights, widths)[0, 0]
    moved = (changed - plain).abs().amax(dim=1) > 1e-6
    assert moved.tolist() == [False, False, True, False]
