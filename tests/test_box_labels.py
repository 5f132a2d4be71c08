"""Labels of the boxes of all images in two arrays, and views that carry them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from data.box_labels import BoxLabels
from data.coco import CocoDataset
from data.transforms import Augment
from data.views import SampleKey, TwoViewDataset, collate_views
from tests.helpers.without_tensors import sent


def test_each_image_has_its_own():
    labels = BoxLabels.of([[3, 0], [], torch.tensor([4]), np.array([1, 1, 2])], count=5)
    assert len(labels) == 4
    assert [labels[i].tolist() for i in range(4)] == [[3, 0], [], [4], [1, 1, 2]]
    assert labels[1].dtype == torch.int64
    assert labels.count == 5
    for place in (4, -1):
        with pytest.raises(IndexError):
            labels[place]
    assert len(BoxLabels.of([], count=2)) == 0


@pytest.fixture
def proposals(dataset, tmp_path):
    """A function that reads the proposals, with two categories in turn, and other `info`."""

    def read(info):
        content = json.loads((dataset / "proposals.json").read_text())
        content |= {"info": info, "categories": [{"id": k, "name": f"c{k}"} for k in (1, 2)]}
        for number, annotation in enumerate(content["annotations"]):
            annotation["category_id"] = 1 + number % 2
        (tmp_path / "p.json").write_text(json.dumps(content))
        return CocoDataset(dataset / "train", tmp_path / "p.json")

    return read


def test_views_have_the_clusters_of_a_file(proposals):
    source = proposals({"clusters": {"digest": "x"}})
    dataset = TwoViewDataset(source, Augment((32,), flip=1.0), max_proposals=3)
    assert dataset.num_clusters == 2
    samples = [sent(dataset)[SampleKey(index, "s")] for index in (0, 2, 3)]
    for first, second in samples:
        assert torch.equal(first["labels"], second["labels"])
        assert len(first["labels"]) == len(first["boxes"])
    expected = [[0, 1, 0], [], [0, 1, 0]]  # 3, 1 and 0 boxes come before the fourth image's 4
    for batch in collate_views(samples):
        assert [labels.tolist() for labels in batch["labels"]] == expected
        assert batch["labels"][1].dtype == torch.int64


def test_classes_of_another_file_are_no_clusters(proposals):
    """Labelled boxes may serve as proposals; their classes must not reach the pre-training."""
    for info in ({}, None, "clusters", {"description": "clusters"}):
        dataset = TwoViewDataset(proposals(info), Augment((32,)), max_proposals=None)
        assert dataset.num_clusters is None
        samples = [dataset[SampleKey(0, "s")]]
        assert "labels" not in samples[0][0]
        assert "labels" not in collate_views(samples)[0]


def test_clusters_that_were_found_at_the_start_of_a_run(proposals):
    source = proposals({})
    labels = BoxLabels.of([[7] * len(record.boxes) for record in source.records], count=9)
    dataset = TwoViewDataset(source, Augment((32,)), max_proposals=2, clusters=labels)
    assert dataset.num_clusters == 9
    for view in sent(dataset)[SampleKey(0, "s")]:
        assert view["labels"].tolist() == [7, 7]
