"""What a run was started from: equal contents have equal digests, wherever they lie."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from aligndet import checkpoint
from data.coco import CocoDataset
from data.digest import digest_of
from data.image_folder import images_of_classes, images_of_tree
from data.proposals.cache import ProposalCache
from data.proposals.propose import ProposalSettings
from data.proposals.searched_images import SearchedImages


def test_labels_may_move_and_be_written_differently(dataset, tmp_path):
    expected = digest_of(CocoDataset(dataset / "train", dataset / "train.json"))
    shutil.copytree(dataset / "train", tmp_path / "photos")
    content = json.loads((dataset / "train.json").read_text())
    file = tmp_path / "labels.json"
    file.write_text(json.dumps({"info": {"year": 2026}, **content}, indent=1))
    assert digest_of(CocoDataset(tmp_path / "photos", file)) == expected


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c["annotations"][0].update(bbox=[8, 8, 30, 25]),
        lambda c: c["annotations"][0].update(category_id=7),
        lambda c: c["annotations"].pop(),
        lambda c: c["images"].reverse(),
        lambda c: c["images"].pop(2),  # has no boxes
        lambda c: c["categories"][0].update(name="green"),
    ],
)
def test_what_training_would_notice_changes_the_digest(dataset, tmp_path, change):
    content = json.loads((dataset / "train.json").read_text())
    change(content)
    (tmp_path / "a.json").write_text(json.dumps(content))
    changed = digest_of(CocoDataset(dataset / "train", tmp_path / "a.json"))
    assert changed != digest_of(CocoDataset(dataset / "train", dataset / "train.json"))


def test_images_without_boxes_count_by_name_and_class(dataset, class_folders, tmp_path):
    tree = images_of_tree(dataset / "train")
    searched = SearchedImages(dataset / "train", ProposalCache(tmp_path, ProposalSettings()))
    assert digest_of(tree) == digest_of(searched)
    assert digest_of(tree) != digest_of(images_of_tree(dataset / "val"))
    classes, plain = images_of_classes(class_folders / "train"), images_of_tree(class_folders)
    assert digest_of(classes) != digest_of(images_of_tree(class_folders / "train"))
    assert digest_of(classes) != digest_of(plain)


def test_files_by_their_bytes_and_other_sources_by_their_name(tmp_path):
    torch.save({"a": torch.zeros(3)}, tmp_path / "a.pth")
    (tmp_path / "run").mkdir()
    shutil.copy(tmp_path / "a.pth", tmp_path / "run/weights.pt")
    digest = checkpoint.digest(str(tmp_path / "a.pth"))
    assert len(digest) == 32
    assert digest == checkpoint.digest(str(tmp_path / "run"))
    (tmp_path / "a.pth").write_bytes(b"other")
    assert checkpoint.digest(str(tmp_path / "a.pth")) != digest
    assert checkpoint.digest(str(tmp_path / "gone.pth")) is None
    assert checkpoint.digest("torchvision:IMAGENET1K_V2") == "torchvision:IMAGENET1K_V2"
    assert checkpoint.digest(None) == "nothing"
