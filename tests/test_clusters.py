"""Clusters of boxes: of all boxes, whatever the batch and the sample; killed runs go on."""

from __future__ import annotations

import os
import socket
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from aligndet import cluster_state, clusters, dist
from aligndet.box_features import FeatureSettings
from aligndet.cluster_state import ClusterState
from aligndet.clusters import (
    ClusterSettings,
    assign_clusters,
    boxes_digest,
    kept_clusters,
    work_digest,
)
from aligndet.config import build_config
from data.build import build_two_views
from data.coco import CocoDataset
from data.errors import DataError
from data.images import ImageReading
from models.backbone import build_backbone
from models.checksum import checksum
from tests.helpers.drawn_boxes import save_coco
from tests.helpers.proposal_command import spoil

CPU = torch.device("cpu")
SETTINGS = ClusterSettings(3, 8, features=FeatureSettings(("c4",), 64, 96))
# The three colours in turn; each box of an image has its own.
BOXES = [(4, 4, 28, 40), (34, 6, 60, 44), (66, 10, 92, 60)]
IMAGES = 7


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("colours")
    save_coco(folder, [(96, 64, BOXES)] * IMAGES + [(96, 64, [])])
    return folder


@pytest.fixture
def source(folder):
    return CocoDataset(folder, folder / "boxes.json")


@pytest.fixture(scope="module")
def backbone():
    torch.manual_seed(0)
    return build_backbone("resnet18").eval()


def as_lists(labels):
    return [labels[image].tolist() for image in range(len(labels))]


def test_boxes_of_one_colour_are_one_cluster(source, backbone):
    labels = assign_clusters(source, backbone, SETTINGS, CPU)
    assert labels.count == 3
    found = as_lists(labels)
    assert found[-1] == []
    assert found[:-1] == [found[0]] * IMAGES
    assert sorted(found[0]) == [0, 1, 2]


def test_all_boxes_are_assigned_beyond_the_sample(source, backbone, monkeypatch):
    """Centres from a few images, read two at a time; the others follow in a second pass."""
    monkeypatch.setattr(clusters, "TOGETHER", 2)
    read = []
    real = clusters.box_features

    def noted(backbone, source, images, **options):
        read.append(sorted(images))
        return real(backbone, source, images, **options)

    monkeypatch.setattr(clusters, "box_features", noted)
    labels = assign_clusters(source, backbone, replace(SETTINGS, sample=7), CPU)
    assert [len(images) for images in read[:-1]] == [2] * (len(read) - 1)
    assert len(read[-1]) > 2
    assert sorted(sum(read, [])) == list(range(IMAGES + 1))  # each image once
    found = as_lists(labels)
    assert found[:-1] == [found[0]] * IMAGES
    assert sorted(found[0]) == [0, 1, 2]


@pytest.mark.parametrize("batch_size", [1, 5])
def test_the_batch_size_changes_no_cluster(dataset, backbone, batch_size):
    source = CocoDataset(dataset / "train", dataset / "proposals.json")
    settings = replace(SETTINGS, clusters=6)
    expected = as_lists(assign_clusters(source, backbone, settings, CPU, batch_size=2))
    found = assign_clusters(source, backbone, settings, CPU, batch_size=batch_size)
    assert as_lists(found) == expected


def test_the_best_boxes_only(source, backbone):
    features = replace(SETTINGS.features, max_boxes=2)
    labels = assign_clusters(source, backbone, replace(SETTINGS, features=features), CPU)
    assert list(map(len, as_lists(labels))) == [2] * IMAGES + [0]


def test_fewer_boxes_than_clusters(source, backbone):
    with pytest.raises(DataError, match="21 boxes cannot make 22 clusters; ask for fewer"):
        assign_clusters(source, backbone, replace(SETTINGS, clusters=22), CPU)


def test_bad_settings():
    for name in ("clusters", "components", "sample"):
        with pytest.raises(ValueError, match=f"{name} is 0; it must be at least 1"):
            ClusterSettings(**{name: 0})
    for levels in ((), ("c6",)):
        with pytest.raises(ValueError, match="give some of c2, c3, c4, c5"):
            ClusterSettings(features=FeatureSettings(levels))


def test_a_killed_run_goes_on(source, backbone, tmp_path, monkeypatch):
    """It neither fits again nor reads an image again that was done."""
    monkeypatch.setattr(clusters, "TOGETHER", 2)
    settings, kept = replace(SETTINGS, sample=5), tmp_path / "state.pt"
    expected = as_lists(assign_clusters(source, backbone, settings, CPU))
    real, read = source.read, []

    def dies(index):
        read.append(index)
        if len(read) == 6:
            raise KeyboardInterrupt
        return real(index)

    monkeypatch.setattr(source, "read", dies)
    with pytest.raises(KeyboardInterrupt):
        assign_clusters(source, backbone, settings, CPU, batch_size=1, kept=kept)
    monkeypatch.setattr(source, "read", lambda index: (read.append(index), real(index))[1])
    monkeypatch.setattr(clusters, "fit", None)
    for _ in range(2):  # the second time everything is there
        found = assign_clusters(source, backbone, settings, CPU, batch_size=1, kept=kept)
        assert as_lists(found) == expected
    assert sorted(read[:5] + read[6:]) == list(range(IMAGES + 1))


def test_the_state_of_other_work_is_not_taken(source, backbone, tmp_path):
    kept = tmp_path / "state.pt"
    assign_clusters(source, backbone, SETTINGS, CPU, kept=kept)
    digest, weights = boxes_digest(source, SETTINGS), checksum(backbone.state_dict())
    assert ClusterState.read(kept, digest, weights).finished
    torch.manual_seed(1)
    other = build_backbone("resnet18").eval()
    differing = CocoDataset(tmp_path, save_coco(tmp_path, [(96, 64, BOXES)]))
    others = [
        (differing, backbone, SETTINGS),
        (source, other, SETTINGS),
        (source, backbone, replace(SETTINGS, seed=1)),
        (source, backbone, replace(SETTINGS, features=FeatureSettings(("c5",)))),
    ]
    for source_, backbone_, settings in others:
        mine = boxes_digest(source_, settings), checksum(backbone_.state_dict())
        assert ClusterState.read(kept, *mine).quantiser is None
    digests = {work_digest(*work) for work in [(source, backbone, SETTINGS), *others]}
    assert len(digests) == 5
    content = bytearray(kept.read_bytes())
    content[len(content) // 2] ^= 255
    kept.write_bytes(content)  # damaged: it is made again
    assert ClusterState.read(kept, digest, weights).quantiser is None
    assert ClusterState.read(tmp_path / "none.pt", digest, weights).labels == {}


def test_it_is_saved_again_and_again(source, backbone, tmp_path, monkeypatch):
    """So that a power cut costs a minute."""
    monkeypatch.setattr(clusters, "TOGETHER", 2)
    settings, saved = replace(SETTINGS, sample=5), []
    save = ClusterState._packed
    monkeypatch.setattr(
        ClusterState, "_packed", lambda s: (saved.append(len(s.labels)), save(s))[1]
    )
    assign_clusters(source, backbone, settings, CPU, kept=tmp_path / "state.pt")
    assert len(saved) == 2  # after the fit and at the end
    (tmp_path / "state.pt").unlink()
    saved.clear()
    monkeypatch.setattr(cluster_state, "SAVE_EVERY", 0.0)
    assign_clusters(source, backbone, settings, CPU, kept=tmp_path / "state.pt")
    assert saved == [*range(saved[0], IMAGES + 2), IMAGES + 1]


def test_a_run_that_is_resumed_has_the_clusters_that_it_began_with(source, backbone, tmp_path):
    """Its backbone may have changed."""
    kept = tmp_path / "clusters.pt"
    assert kept_clusters(kept, source, SETTINGS) is None
    labels = assign_clusters(source, backbone, SETTINGS, CPU, kept=kept)
    assert as_lists(kept_clusters(kept, source, SETTINGS)) == as_lists(labels)
    assert kept_clusters(kept, source, replace(SETTINGS, seed=1)) is None
    state = ClusterState.read(kept, boxes_digest(source, SETTINGS), None)
    state.finished = False  # killed before the end
    state.save(now=True)
    assert kept_clusters(kept, source, SETTINGS) is None


def test_images_that_cannot_be_used(tmp_path, backbone):
    path = save_coco(tmp_path, [(96, 64, BOXES)] * 3)
    noise = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "2.png")
    spoil(tmp_path / "2.png")
    source = CocoDataset(tmp_path, path, reading=ImageReading(on_bad_image="skip"))
    with pytest.raises(DataError, match=r"2\.png"):
        assign_clusters(source, backbone, SETTINGS, CPU)
    labels = assign_clusters(source, backbone, SETTINGS, CPU, skip_bad=True)
    assert list(map(len, as_lists(labels))) == [3, 0, 3]


def test_boxes_that_the_search_finds_while_training(content, tmp_path, backbone):
    """There is no file of proposals: the boxes of the cache."""
    config = build_config(
        content(
            tmp_path / "run",
            data__train__proposals=None,
            data__proposal_cache=str(tmp_path / "cache"),
        )
    )
    dataset = build_two_views(config.data, max_proposals=4)
    features = FeatureSettings(("c4",), 64, 96, max_boxes=4)
    settings = ClusterSettings(3, 8, features=features)
    dataset.clusters = assign_clusters(dataset.source, backbone, settings, CPU)
    assert dataset.num_clusters == 3
    assert len(dataset.clusters) == len(dataset)
    for index in range(len(dataset)):
        boxes = dataset.source.read(index)[1].boxes
        assert len(dataset.clusters[index]) == min(4, len(boxes))


def two_ranks(rank, folder, port):
    names = {"WORLD_SIZE": 2, "RANK": rank, "LOCAL_RANK": rank, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in names.items()}, MASTER_ADDR="127.0.0.1")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    backbone = build_backbone("resnet18").eval()
    source = CocoDataset(folder, folder / "boxes.json")
    clusters.TOGETHER = 2
    with dist.process_group("cpu"):
        labels = assign_clusters(
            source, backbone, replace(SETTINGS, sample=5), CPU, kept=folder / "state.pt"
        )
    torch.save(as_lists(labels), folder / f"{rank}.pt")


def test_two_ranks_give_what_one_gives(tmp_path, backbone, monkeypatch):
    source = CocoDataset(tmp_path, save_coco(tmp_path, [(96, 64, BOXES)] * 6))
    monkeypatch.setattr(clusters, "TOGETHER", 2)
    settings = replace(SETTINGS, sample=5)
    expected = as_lists(assign_clusters(source, backbone, settings, CPU))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(two_ranks, (tmp_path, port), nprocs=2)
    assert torch.load(tmp_path / "0.pt") == torch.load(tmp_path / "1.pt") == expected
    assert as_lists(kept_clusters(tmp_path / "state.pt", source, settings)) == expected
