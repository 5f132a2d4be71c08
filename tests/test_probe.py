"""k-NN and the linear probe by hand and against slow loops; the command."""

from __future__ import annotations

import json
import math
import os
import shutil
import socket

import pytest
import torch
from torch import nn

from aligndet import dist, probe
from aligndet.probe import Features, ProbeData, extract_features, knn_accuracy, linear_accuracy
from data.crops import CentreCrop
from data.errors import DataError
from data.image_folder import images_of_classes
from data.images import read_image
from data.normalise import normalise
from models.backbone import build_backbone
from models.classifier import pooled_features
from tests.helpers.double_precision import double_precision

CPU = torch.device("cpu")


def random_features(count, seed, classes=3, width=6):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (count,), generator=generator)
    labels[:classes] = torch.arange(classes)
    values = torch.randn(count, width, generator=generator)
    values[torch.arange(count), labels] += 1.0
    return Features(values, labels)


def slow_knn(train, val, k):
    right = 0
    for x, label in zip(val.values, val.labels.tolist(), strict=True):
        cosines = [(torch.dot(x, y) / (x.norm() * y.norm())).item() for y in train.values]
        nearest = sorted(range(len(cosines)), key=lambda i: -cosines[i])[:k]
        votes = [0.0, 0.0, 0.0]
        for i in nearest:
            votes[train.labels[i]] += math.exp(cosines[i] / 0.07)
        right += votes.index(max(votes)) == label
    return 100.0 * right / len(val.labels)


@pytest.mark.usefixtures("double_precision")  # nearly equal cosines and votes
@pytest.mark.parametrize("k", [1, 5, 20])
def test_knn_equals_a_slow_loop(k):
    train, val = random_features(80, seed=0), random_features(300, seed=1)  # more than one block
    expected = slow_knn(train, val, k)
    assert 40 < expected < 95
    assert knn_accuracy(train, val, k) == pytest.approx(expected)


def test_knn_by_hand():
    """The direction counts, not the length; two good votes outweigh one that is a little better."""
    train = Features(
        torch.tensor([[100.0, 0.0], [1.0, 0.1], [1.0, 0.1], [0.0, 1.0]]),
        torch.tensor([0, 1, 1, 0]),
    )
    val = Features(torch.tensor([[0.5, 0.0], [0.0, 7.0]]), torch.tensor([1, 0]))
    assert knn_accuracy(train, val, k=3) == 100.0
    assert knn_accuracy(train, val, k=1) == 50.0  # the nearest of the first is of class 0
    assert knn_accuracy(train, val, k=20) == 100.0  # more than there are images


def test_the_linear_probe_finds_a_linear_rule():
    """Even if one feature is a thousand times as large, and another is constant."""
    torch.manual_seed(0)
    values = torch.randn(600, 4)
    labels = (values[:, 0] + values[:, 1] > 0).long() + 2 * (values[:, 2] > 0).long()
    values[:, 1] = 1000 * values[:, 1] + 5000
    values[:, 0] /= 1000
    values[:, 3] = 3.0
    train, val = Features(values[:400], labels[:400]), Features(values[400:], labels[400:])
    assert linear_accuracy(train, val) > 95
    shuffled = Features(train.values, train.labels[torch.randperm(400)])
    assert linear_accuracy(shuffled, val) < 45


def test_the_linear_probe_gives_the_same_each_time():
    train, val = random_features(90, seed=0), random_features(90, seed=1)
    state = torch.get_rng_state()
    first = linear_accuracy(train, val, epochs=5)
    torch.manual_seed(77)
    assert linear_accuracy(train, val, epochs=5) == first
    torch.set_rng_state(state)


@pytest.mark.usefixtures("double_precision")
def test_features_are_those_of_centre_crops_in_order(class_folders):
    torch.manual_seed(0)
    backbone = build_backbone("resnet18", norm="bn", frozen_stages=0).train()
    images = images_of_classes(class_folders / "val")
    features = extract_features(backbone, images, 32, batch_size=4, workers=0, device=CPU)
    assert features.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert features.values.shape == (6, 512)
    assert backbone.training  # as before
    backbone.eval()
    for index in (0, 5):
        view = CentreCrop(32)(read_image(images.root / images.files[index]))
        with torch.no_grad():
            expected = pooled_features(backbone, normalise(view[None]))[0]
        torch.testing.assert_close(features.values[index], expected, rtol=1e-9, atol=1e-9)
    assert backbone.bn1.num_batches_tracked == 0  # measuring leaves no trace


def test_the_classifier_of_the_backbone_is_scored_too(class_folders):
    torch.manual_seed(0)
    data = ProbeData.read(str(class_folders / "train"), str(class_folders / "val"))
    backbone, classifier = build_backbone("resnet18"), nn.Linear(512, 2)
    with torch.no_grad():
        classifier.weight.zero_()
        classifier.bias.copy_(torch.tensor([1.0, 0.0]))  # always the first of two
    scores = probe.probe(backbone, data, 32, 4, 0, CPU, classifier=classifier)
    assert scores["top1"] == 50.0
    assert scores["knn"] == 100.0  # red and blue
    assert scores["linear"] == 100.0


def test_folders_with_different_classes(class_folders, tmp_path):
    shutil.copytree(class_folders / "val", tmp_path / "val")
    (tmp_path / "val" / "red").rename(tmp_path / "val" / "green")
    with pytest.raises(DataError, match="classes differ from those of .*green is in one of them"):
        ProbeData.read(str(class_folders / "train"), str(tmp_path / "val"))


def test_the_command(class_folders, tmp_path, script, error_of, capsys):
    folders = ("--train", class_folders / "train", "--val", class_folders / "val")
    options = ("--size", 32, "--workers", 0, "--device", "cpu", "--backbone", "resnet18")
    torch.save(build_backbone("resnet18").state_dict(), tmp_path / "weights.pt")
    weights = ("--weights", tmp_path / "weights.pt")
    script("aligndet.probe", *folders, *options, *weights, "--output", tmp_path / "scores.json")
    assert "knn 100.0 %  linear 100.0 %" in capsys.readouterr().out
    assert json.loads((tmp_path / "scores.json").read_text()) == {"knn": 100.0, "linear": 100.0}
    message = error_of("aligndet.probe", *folders, *options, "--weights", tmp_path / "none.pt")
    assert "none.pt" in message
    message = error_of("aligndet.probe", "--train", tmp_path / "no", *folders[2:], *options)
    assert "no: no such directory" in message


def two_ranks(rank, folder, port):
    names = {"WORLD_SIZE": 2, "RANK": rank, "LOCAL_RANK": rank, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in names.items()}, MASTER_ADDR="127.0.0.1")
    torch.set_num_threads(1)
    images = images_of_classes(folder / "images")
    with double_precision(), dist.process_group("cpu"):
        found = probed(images)
    torch.save(found and (found.values, found.labels), folder / f"{rank}.pt")


def probed(images):
    torch.manual_seed(0)
    return extract_features(build_backbone("resnet18"), images, 32, 2, 0, CPU)


def test_two_ranks_give_what_one_gives(tmp_path, class_folders):
    """Five images: a rank has three, in two batches of at most two, and the other two, in one."""
    shutil.copytree(class_folders / "val", tmp_path / "images")
    sorted((tmp_path / "images").rglob("*.*"))[-1].unlink()
    with double_precision():
        expected = probed(images_of_classes(tmp_path / "images"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(two_ranks, (tmp_path, port), nprocs=2)
    values, labels = torch.load(tmp_path / "0.pt")
    assert values.shape == (5, 512)
    assert labels.tolist() == expected.labels.tolist() == [0, 0, 0, 1, 1]
    torch.testing.assert_close(values, expected.values, rtol=1e-9, atol=1e-9)
    assert torch.load(tmp_path / "1.pt") is None  # holds no features
