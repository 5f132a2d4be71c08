"""The sheet: which clusters and boxes it shows, and what stands where."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from aligndet.cluster_sheet import (
    CROPS,
    GAP,
    MARGIN,
    ROWS,
    SIDE,
    choose_boxes,
    draw_sheet,
    evenly_spaced_clusters,
)
from data.box_labels import BoxLabels
from data.coco import CocoDataset
from tests.helpers.drawn_boxes import COLOURS, save_coco


def labels_of(sizes):
    """Clusters with so many boxes each, in images of two boxes, in a mixed order."""
    values = np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)), sizes))
    return BoxLabels.of([values[i : i + 2] for i in range(0, len(values), 2)], len(sizes))


def test_from_the_largest_to_the_smallest_that_fills_a_row():
    sizes = [CROPS + k for k in range(23)] + [3, 0]
    assert evenly_spaced_clusters(labels_of(sizes)) == list(range(22, -1, -2))
    assert evenly_spaced_clusters(labels_of([20, 9, 0, 30])) == [3, 0, 1]  # too few that do
    assert evenly_spaced_clusters(BoxLabels.of([[]], 4)) == []


def test_boxes_are_of_their_cluster_and_drawn_once():
    labels = labels_of([40, 5])
    for cluster, places in zip((0, 1), choose_boxes(labels, [0, 1], seed=0), strict=True):
        assert len(set(places)) == len(places) == min(CROPS, (40, 5)[cluster])
        assert {labels[image][box].item() for image, box in places} == {cluster}
    assert choose_boxes(labels, [0], 1) != choose_boxes(labels, [0], 0)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_each_crop_lies_in_the_row_of_its_cluster(tmp_path, suffix):
    boxes = [(4, 4, 28, 40), (34, 6, 60, 44), (66, 10, 92, 60)]  # red, green, blue
    source = CocoDataset(tmp_path, save_coco(tmp_path, [(96, 64, boxes)] * 6))
    labels = BoxLabels.of([[2, 0, 1]] * 5 + [[2, 0, 0]], 4)
    path = tmp_path / "sheets" / f"sheet.{suffix}"
    draw_sheet(source, labels, path)
    sheet = np.array(Image.open(path).convert("RGB")).astype(int)
    assert sheet.shape == (GAP + 3 * (SIDE + GAP), MARGIN + CROPS * (SIDE + GAP), 3)
    # Seven boxes of cluster 0, all green but one; six of 2, red; five of 1, blue.
    expected = {0: {1, 2}, 1: {0}, 2: {2}}
    for row, colours in expected.items():
        found = set()
        for column in range((7, 6, 5)[row]):
            y = GAP + row * (SIDE + GAP) + SIDE // 2
            x = MARGIN + column * (SIDE + GAP) + SIDE // 2
            distances = [np.abs(sheet[y, x] - colour).sum() for colour in COLOURS[:3]]
            assert min(distances) < 40
            found.add(int(np.argmin(distances)))
        assert found == colours
    assert ROWS >= 3
