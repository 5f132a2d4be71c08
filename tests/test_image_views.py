"""Views of whole images: what a sample and a batch hold."""

from __future__ import annotations

import pytest
import torch

from data.crops import CentreCrop, RandomCrop
from data.image_folder import ImageFiles, images_of_tree
from data.image_views import ImageViews, collate_image_views
from data.images import read_image
from data.views import SampleKey
from tests.helpers.without_tensors import sent


@pytest.fixture
def images(dataset):
    return images_of_tree(dataset / "train")


def test_two_views_are_drawn_independently(images):
    views = ImageViews(images, RandomCrop(16, 0.2, colour=True), views=2)
    sample = views[SampleKey(3, "a")]
    first, second = sample["views"]
    assert first.shape == second.shape == (3, 16, 16)
    assert not torch.equal(first, second)
    assert sample["index"] == 3
    assert sample["label"] == -1
    again = views[SampleKey(3, "a")]["views"]
    assert torch.equal(again[0], first)
    assert torch.equal(again[1], second)
    assert not torch.equal(views[SampleKey(3, "b")]["views"][0], first)


def test_a_sample_shows_its_file_and_has_its_label(images):
    labelled = ImageFiles(images.root, images.files, ("x", "y"), (0, 1) * (len(images) // 2))
    views = ImageViews(labelled, CentreCrop(16))
    assert len(views) == len(views.aspect_ratios) == 8
    assert set(views.aspect_ratios) == {1.0}
    for index in (0, 5):
        sample = views[SampleKey(index, "")]
        expected = CentreCrop(16)(read_image(images.root / images.files[index]))
        assert torch.equal(sample["views"][0], expected)
        assert sample["label"] == index % 2


def test_a_batch(images):
    views = ImageViews(images, RandomCrop(16, 0.2, colour=False), views=2)
    samples = [views[SampleKey(index, "s")] for index in (4, 1, 2)]
    batch = collate_image_views(samples)
    assert [view.shape for view in batch["views"]] == [(3, 3, 16, 16)] * 2
    assert torch.equal(batch["views"][1][2], samples[2]["views"][1])
    assert batch["indices"].tolist() == [4, 1, 2]
    assert batch["names"] == [images.files[index] for index in (4, 1, 2)]
    assert batch["labels"].tolist() == [-1, -1, -1]


def test_it_is_sent_to_workers_without_tensors(images):
    views = ImageViews(images, RandomCrop(16, 0.2, colour=True), views=2)
    key = SampleKey(3, "a")
    ours, expected = sent(views)[key]["views"], views[key]["views"]
    assert all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))
    assert views.path(3) == images.root / images.files[3]
