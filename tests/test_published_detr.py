"""The weights that DETR's authors published, as a start for fine-tuning."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from aligndet.transfer import TransferConfig, load_pretrained, model_like
from data.coco import Categories
from models import ModelConfig, build_detector
from tests.test_detr_weights import authors_names

MISSING = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)  # of COCO's ids from 1 to 90
COCO = tuple(i for i in range(1, 91) if i not in MISSING)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A file as detr-r50's, each weight of which holds numbers of its own."""
    torch.manual_seed(0)
    weights = {k: torch.rand(v.shape, dtype=v.dtype) for k, v in authors_names().items()}
    path = tmp_path_factory.mktemp("published") / "detr-r50.pth"
    torch.save({"model": weights}, path)
    return path, weights


def start(path, ids):
    model = build_detector(ModelConfig(detector="detr"), len(ids))
    categories = Categories(tuple(ids), tuple(f"class {i}" for i in ids))
    return model, load_pretrained(model, "detr", path, categories, TransferConfig())


def test_all_but_the_classifier_fits_other_classes(published):
    path, weights = published
    model, manifest = start(path, (3, 7))
    assert manifest.dropped == manifest.fresh == ["classifier.weight", "classifier.bias"]
    state = model.state_dict()
    assert torch.equal(state["query_embedding.weight"], weights["query_embed.weight"])
    assert torch.equal(state["input_projection.bias"], weights["input_proj.bias"])
    name = "layer3.2.conv1.weight"
    assert torch.equal(state[f"backbone.{name}"], weights[f"backbone.0.body.{name}"])
    assert len(manifest.loaded) == len(state) - 2


def test_the_classifier_is_kept_for_the_classes_of_coco(published):
    """A label of theirs is COCO's id; ours are 0 to 79, in the order of the file."""
    path, weights = published
    model, manifest = start(path, COCO)
    assert (manifest.dropped, manifest.fresh) == ([], [])
    for label, number in enumerate(COCO):
        assert torch.equal(model.classifier.weight[label], weights["class_embed.weight"][number])
    assert torch.equal(model.classifier.bias[80], weights["class_embed.bias"][91])


def test_eighty_classes_of_other_numbers_are_not_taken_for_cocos(published):
    """COCO itself is numbered from 1 to 80 after a conversion from YOLO."""
    _, manifest = start(published[0], range(1, 81))
    assert manifest.dropped == manifest.fresh == ["classifier.weight", "classifier.bias"]


def test_the_network_is_the_files(published):
    made = model_like(published[0], {"options": {"dropout": 0.3}})
    assert (made["detector"], made["backbone"]) == ("detr", "resnet50")
    assert made["options"] == {
        **{"width": 256, "queries": 100, "feedforward": 2048},
        **{"encoder_layers": 6, "decoder_layers": 6, "dropout": 0.3},
    }
    with pytest.raises(ValueError, match="model.backbone=resnet18 is given, but the file's is re"):
        model_like(published[0], {"backbone": "resnet18"})


def test_a_published_file_with_a_mask_head_is_refused(published, tmp_path):
    weights = {**published[1], "mask_head.lay1.weight": torch.zeros(1)}
    torch.save({"model": weights}, tmp_path / "panoptic.pth")
    with pytest.raises(ValueError, match=r"panoptic\.pth: mask_head\.lay1\.weight has no counterp"):
        model_like(tmp_path / "panoptic.pth", {})


def test_another_detector_cannot_start_from_it(published):
    config = ModelConfig(detector="fcos")
    with torch.device("meta"):
        model = build_detector(dataclasses.replace(config), 2)
    with pytest.raises(
        ValueError, match="does not fit this fcos .* written for detr with resnet50"
    ):
        load_pretrained(
            model, "fcos", published[0], Categories((1, 2), ("a", "b")), TransferConfig()
        )
