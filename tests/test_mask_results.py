"""Masks of detections as run lengths, against torchvision's way into the image; and the whole way
from a detector with masks to its scores."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from torchvision.models.detection.roi_heads import paste_masks_in_image

from aligndet import checkpoint, mask_results
from aligndet.evaluate import AP_KEYS, MASK_AP_KEYS, class_table, coco_results, evaluate
from aligndet.mask_evaluation import NO_MASKS
from aligndet.mask_results import encode_masks
from aligndet.run_directory import RunDirectory
from aligndet.transfer import detector_file
from data.coco import Categories, CocoDataset
from data.coco_json import load_coco
from data.loaders import eval_loader
from data.transforms import Augment
from data.views import DetectionDataset, collate_detection
from models import build_detector
from models.detector import ModelConfig
from tests.helpers.oracle_detector import OracleDetector, blobs
from tests.helpers.run_lengths import compressed, uncompressed

SIZE = (60, 90)
CPU = torch.device("cpu")


def detections(count, seed=0):
    """Boxes in and around an image of 60 x 90 pixels, with smooth masks."""
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(count, 2, 2, generator=generator) * torch.tensor([110.0, 80]) - 10
    boxes = torch.cat([corners.amin(dim=1), corners.amax(dim=1)], dim=1)
    return {
        "boxes": boxes,
        "masks": blobs(count, generator),
        "scores": torch.rand(count, generator=generator),
        "labels": torch.zeros(count, dtype=torch.int64),
    }


def pasted_by_torchvision(found, size):
    """(D, H, W) bool."""
    return (paste_masks_in_image(found["masks"][:, None], found["boxes"], size) > 0.5)[:, 0]


@pytest.mark.parametrize("chunk", [1, 3 * 60 * 90, 2**25])
def test_run_lengths_are_the_pixels_of_the_mask(monkeypatch, chunk):
    """Also if only some, or one, are in memory together."""
    monkeypatch.setattr(mask_results, "CHUNK", chunk)
    found = detections(20)
    encoded = encode_masks(found, SIZE)
    expected = pasted_by_torchvision(found, SIZE).numpy()
    assert expected.any(axis=(1, 2)).sum() > 15
    assert [entry["size"] for entry in encoded] == [[60, 90]] * 20
    assert json.loads(json.dumps(encoded)) == encoded
    for entry, mask in zip(encoded, expected, strict=True):
        assert (coco_mask.decode(entry) == mask).all()
        assert entry["counts"].encode() == coco_mask.encode(np.asfortranarray(mask))["counts"]


def test_no_detections_have_no_masks():
    assert encode_masks(detections(0), SIZE) == []


def test_masks_are_of_the_size_of_the_file():
    """The detector saw an image of 60 x 90 pixels, the file has 120 x 270."""
    found = detections(6)
    results = coco_results(
        [found], [5], torch.tensor([SIZE]), [(120, 270)], Categories((3,), ("a",))
    )
    scaled = {**found, "boxes": found["boxes"] * torch.tensor([3.0, 2, 3, 2])}
    for entry, mask in zip(results, pasted_by_torchvision(scaled, (120, 270)), strict=True):
        assert list(entry) == ["image_id", "category_id", "bbox", "score", "segmentation"]
        assert (coco_mask.decode(entry["segmentation"]) == mask.numpy()).all()


@pytest.fixture
def val(dataset):
    """Images of 64 x 96 pixels, seen at half their size."""
    coco = CocoDataset(dataset / "val", dataset / "val.json")
    return DetectionDataset(coco, Augment((32,), 48, flip=0.0))


def run(model, val, content, batch_size=2):
    loader = eval_loader(val, val.coco.aspect_ratios, collate_detection, batch_size, workers=0)
    return evaluate(model, loader, content, val.coco.categories, CPU)


def label_with(content, model):
    """Give the annotations the masks that the model finds, as torchvision would draw them."""
    masks = []
    for found in model.found:
        scaled = {**found, "boxes": found["boxes"] * 2}
        masks.extend(pasted_by_torchvision(scaled, (64, 96)).numpy())
    for entry, mask in zip(content["annotations"], masks, strict=True):
        entry["segmentation"] = compressed(mask)


def test_from_the_detector_to_the_files(val, dataset, tmp_path, capsys):
    """Boxes are right but for some noise, masks exactly; an image has no object."""
    content = load_coco(dataset / "val.json")
    model = OracleDetector(val, noise=3.0, masks=True)
    label_with(content, model)
    evaluation = run(model, val, content)
    assert 20 < evaluation.scores["AP"] < 90
    assert evaluation.scores["segm_AP"] == pytest.approx(100.0)
    assert tuple(evaluation.scores) == AP_KEYS + MASK_AP_KEYS
    assert set(evaluation.segm_per_class) == {"red", "blue"}

    directory = RunDirectory(tmp_path)
    directory.report_evaluation(evaluation, "evaluation")
    said = capsys.readouterr()
    assert said.out.splitlines()[0] == "    AP segm_AP   boxes  class"
    assert "segm_AP 100.00" in said.out + said.err
    assert NO_MASKS not in said.out

    def written(name):
        return json.loads((tmp_path / name).read_text())

    assert written("evaluation.json") == evaluation.scores
    assert written("evaluation_per_class.json") == evaluation.per_class
    assert written("evaluation_segm_per_class.json") == evaluation.segm_per_class
    first = written("evaluation_detections.json")[0]["segmentation"]
    assert coco_mask.decode(first).shape == (64, 96)


def test_labels_without_masks_are_said_once(val, dataset, tmp_path, capsys):
    content = load_coco(dataset / "val.json")
    for entry in content["annotations"]:
        entry.pop("segmentation", None)
    evaluation = run(OracleDetector(val, masks=True), val, content)
    assert tuple(evaluation.scores) == AP_KEYS
    assert all("segmentation" in entry for entry in evaluation.detections)
    (tmp_path / "segm_per_class.json").write_text("of an earlier evaluation")
    RunDirectory(tmp_path).report_evaluation(evaluation, "results")
    assert capsys.readouterr().out.count(NO_MASKS) == 1
    assert not (tmp_path / "segm_per_class.json").exists()


def test_a_detector_that_finds_nothing_yet_has_scores_by_masks(val, dataset):
    content = load_coco(dataset / "val.json")
    model = OracleDetector(val, masks=True)
    label_with(content, model)
    model.found = [{key: value[:0] for key, value in found.items()} for found in model.found]
    scores = run(model, val, content).scores
    assert scores["AP"] == scores["segm_AP"] == 0.0


def test_masks_of_the_file_reach_the_evaluation(val, dataset, tmp_path):
    """Run lengths of either kind, in another order than that of the images; an object without."""
    content = json.loads((dataset / "val.json").read_text())
    model = OracleDetector(val, masks=True)
    label_with(content, model)
    first, second = content["annotations"][:2]
    first["segmentation"] = uncompressed(coco_mask.decode(first["segmentation"]))
    del second["segmentation"]
    content["annotations"].reverse()
    (tmp_path / "val.json").write_text(json.dumps(content))
    coco = CocoDataset(dataset / "val", tmp_path / "val.json")
    assert not any("segmentation" in entry for entry in coco.content()["annotations"])
    loaded = coco.content(with_masks=True)
    assert sum("segmentation" in entry for entry in loaded["annotations"]) == 6
    assert run(model, val, loaded).scores["segm_AP"] == pytest.approx(100.0)


def test_table_of_boxes_and_masks(val, dataset):
    content = load_coco(dataset / "val.json")
    model = OracleDetector(val, masks=True)
    label_with(content, model)
    for entry in content["annotations"]:
        if entry["category_id"] == 7:
            entry["segmentation"] = []
    assert class_table(run(model, val, content)).splitlines() == [
        "    AP segm_AP   boxes  class",
        " 100.0   100.0       4  red",
        " 100.0       -       3  blue",
    ]


@pytest.fixture
def weights(tmp_path):
    """A detector that finds masks, with random weights; detections of any score count."""
    options = {"channels": 16, "mask_convs": 1, "score_threshold": 0.0}
    config = ModelConfig(detector="mask_rcnn", backbone="resnet18", options=options)
    categories = Categories((3, 7), ("red", "blue"))
    content = detector_file(build_detector(config, 2), config, categories, (64, 96))
    checkpoint.save(content, tmp_path / "weights.pt")
    return tmp_path / "weights.pt"


def with_polygons(dataset, path):
    """The labels with their boxes as masks."""
    labels = json.loads((dataset / "val.json").read_text())
    for entry in labels["annotations"]:
        x, y, w, h = entry["bbox"]
        entry["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    path.write_text(json.dumps(labels))
    return labels


def test_commands(dataset, weights, write_config, script, tmp_path):
    """`finetune.py --eval-only` and `aligndet.predict` find the same."""
    with_polygons(dataset, tmp_path / "val.json")
    config = write_config(tmp_path / "run", data__val__annotations=str(tmp_path / "val.json"))
    script("finetune", "--config", config, "--eval-only", "--checkpoint", weights)
    scores = json.loads((tmp_path / "run/results.json").read_text())
    assert tuple(scores) == AP_KEYS + MASK_AP_KEYS
    found = json.loads((tmp_path / "run/detections.json").read_text())
    assert found
    images = ("--images", dataset / "val", "--output", tmp_path / "out", "--threshold", 0.0)
    script("aligndet.predict", "--weights", weights, *images)
    predicted = json.loads((tmp_path / "out/detections.json").read_text())["annotations"]
    assert [entry["segmentation"] for entry in predicted] == [e["segmentation"] for e in found]
    assert coco_mask.decode(found[0]["segmentation"]).shape == (64, 96)


def test_labels_that_cannot_be_read_are_one_sentence(
    dataset, weights, write_config, error_of, tmp_path
):
    labels = with_polygons(dataset, tmp_path / "val.json")
    labels["annotations"][2]["segmentation"] = {"counts": "abc"}
    (tmp_path / "val.json").write_text(json.dumps(labels))
    config = write_config(tmp_path / "run", data__val__annotations=str(tmp_path / "val.json"))
    said = error_of("finetune", "--config", config, "--eval-only", "--checkpoint", weights)
    assert "val.json: annotation 3: its segmentation has counts" in said
