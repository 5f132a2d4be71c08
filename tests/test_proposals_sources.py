"""Proposals from labels and from a detector's results, worked by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from aligndet.predict import predict
from data.coco import Categories, CocoDataset
from data.coco_json import load_coco
from data.images import AS_STORED, ImageReading
from data.proposals.command import main
from data.proposals.sources import object_masks_by_file, objects_by_file
from tests.helpers.coco_quirks import SAME, plain
from tests.helpers.coco_quirks import write as write_coco

# An image of 100 x 60 pixels and one of 50 x 40; ids differ from the numbers in a sorted folder.
IMAGES = [
    {"id": 70, "file_name": "b.png", "width": 100, "height": 60},
    {"id": 30, "file_name": "a.png", "width": 50, "height": 40},
]
CATEGORIES = [{"id": 4, "name": "cat"}, {"id": 9, "name": "dog"}]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    images = tmp_path / "images"
    images.mkdir()
    for entry in IMAGES:
        size = (entry["width"], entry["height"])
        Image.new("RGB", size, "green").save(images / entry["file_name"])
    return images


def write(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


def label(image_id: int, bbox: list[float], category: int = 4, crowd: int = 0) -> dict[str, Any]:
    return {"image_id": image_id, "category_id": category, "bbox": bbox, "iscrowd": crowd}


def coco(tmp_path: Path, *labels: dict[str, Any]) -> Path:
    annotations = [{"id": i, **entry} for i, entry in enumerate(labels, start=1)]
    content = {"images": IMAGES, "annotations": annotations, "categories": CATEGORIES}
    return write(tmp_path / "truth.json", content)


def test_objects_are_clipped_and_those_without_area_left_out(tmp_path: Path, folder: Path) -> None:
    """COCO 2017 has two boxes without area: as objects to be found they have no IoU."""
    square = [[10, 10, 60, 10, 60, 50, 10, 50]]
    labels = [
        label(70, [-20, 10, 300, 20]), label(70, [5, 5, 0, 0]), label(70, [10, 10, 50, 40]),
        label(30, [40, 30, 20, 20]), label(30, [60, 10, 5, 5]),
    ]  # fmt: skip
    truth = coco(tmp_path, *(entry | {"segmentation": square} for entry in labels))
    objects = objects_by_file(str(truth), folder)
    assert {name: boxes.tolist() for name, boxes in objects.items()} == {
        "b.png": [[0, 10, 100, 30], [10, 10, 60, 50]],
        "a.png": [[40, 30, 50, 40]],
    }
    masks = object_masks_by_file(str(truth), folder)
    assert {name: len(found.masks) for name, found in masks.items()} == {"b.png": 2, "a.png": 1}
    content = json.loads(truth.read_text())
    for image in content["images"]:
        del image["width"], image["height"]
    boxes = objects_by_file(str(write(truth, content)), folder)
    assert boxes["b.png"].tolist() == [[0, 10, 280, 30], [10, 10, 60, 50]]


def propose(folder: Path, source: str | Path, annotations: Path, *options: str) -> dict[int, list]:
    """Run the command; returns (bbox, score) of each annotation by image id."""
    output = folder.parent / "out.json"
    status = main(["--images", str(folder), "--output", str(output), "--workers", "1",
                   "--source", str(source), "--annotations", str(annotations), *options])
    assert status == 0
    content = json.loads(output.read_text())
    assert content["images"] == IMAGES
    assert content["categories"] == [{"id": 1, "name": "object"}]
    assert all(a["category_id"] == 1 and a["iscrowd"] == 0 for a in content["annotations"])
    CocoDataset(folder, output)  # training accepts every box
    found: dict[int, list] = {entry["id"]: [] for entry in IMAGES}
    for annotation in content["annotations"]:
        found[annotation["image_id"]].append((annotation["bbox"], annotation["score"]))
    return found


def error(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """The one line on stderr of a command that ends with status 1."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    return lines[0]


def test_labels_as_proposals(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truth = coco(
        tmp_path,
        label(70, [10, 20, 30.5, 8]),
        label(70, [0, 0, 100, 60], category=9),  # the whole image: no filter
        label(70, [11, 20, 30, 8], category=9),  # overlaps the first: no NMS
        label(70, [90, 50, 30, 30]),  # 10 x 10 of it are inside
        label(70, [5, 5, 20, 20], crowd=1),
        label(30, [5, 5, 0, 20]),  # no area
        label(30, [50, 5, 10, 10]),  # outside
        label(30, [20, 39.999, 10, 10]),  # 0.001 pixels of it are inside
    )
    assert propose(folder, "gt", truth) == {
        70: [
            ([10, 20, 30.5, 8], 1.0),
            ([0, 0, 100, 60], 0.75),
            ([11, 20, 30, 8], 0.5),
            ([90, 50, 10, 10], 0.25),
        ],
        30: [],
    }
    assert "--source gt: 4 of 8 boxes are left out" in capsys.readouterr().err


def test_options_apply_to_labels_when_they_are_given(folder: Path, tmp_path: Path) -> None:
    truth = coco(
        tmp_path,
        label(70, [10, 10, 20, 20]),
        label(70, [12, 10, 20, 20], category=9),  # IoU 18 * 20 / (800 - 360) = 0.82
        label(70, [40, 10, 50, 10]),  # ratio 5
        label(70, [10, 40, 4, 4]),  # 4 px of 100 are 26 of 640
    )
    first, second, narrow, small = ([10, 10, 20, 20], [12, 10, 20, 20], [40, 10, 50, 10],
                                    [10, 40, 4, 4])
    for options, expected in (
        ([], [first, second, narrow, small]),
        (["--nms", "0.8"], [first, narrow, small]),
        (["--nms", "0.83"], [first, second, narrow, small]),
        (["--filter", "ratio3size0008"], [first, second]),
        (["--filter", "ratio3size0008", "--min-side", "20"], [first, second, small]),
        (["--max-boxes", "2"], [first, second]),
    ):
        boxes = [bbox for bbox, _ in propose(folder, "gt", truth, *options)[70]]
        assert boxes == expected, options


def result(image_id: int, bbox: list[float], score: float, category: int = 4) -> dict[str, Any]:
    return {"image_id": image_id, "category_id": category, "bbox": bbox, "score": score}


def test_results_of_a_detector(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truth = coco(tmp_path, label(70, [1, 1, 9, 9]))
    results = write(tmp_path / "results.json", [
        result(70, [10, 10, 20, 20], 0.3),
        result(70, [-5, 30, 25, 20], 0.9),  # 20 x 20 of it are inside
        result(70, [12, 10, 20, 20], 0.8, category=77),  # IoU 0.82 with the first, another class
        result(70, [0, 0, 100, 60], 0.99),  # larger than 0.8 of the image
        result(30, [5, 5, 20, 20], -1.5),  # any finite score
        result(30, [60, 5, 20, 20], 0.5),  # outside
        result(31, [5, 5, 20, 20], 0.5),  # of another image
    ])
    assert propose(folder, results, truth) == {
        70: [([0, 30, 20, 20], 1.0), ([12, 10, 20, 20], 0.5)],
        30: [([5, 5, 20, 20], 1.0)],
    }
    assert "2 of 7 boxes are left out" in capsys.readouterr().err
    everything = propose(folder, results, truth, "--filter", "none", "--nms", "1")
    assert [bbox for bbox, _ in everything[70]] == [
        [0, 0, 100, 60], [0, 30, 20, 20], [12, 10, 20, 20], [10, 10, 20, 20]
    ]


def test_equal_scores_keep_the_order_of_the_file(folder: Path, tmp_path: Path) -> None:
    truth = coco(tmp_path)
    boxes = [[30, 5, 20, 20], [0, 5, 20, 20], [60, 5, 20, 20]]
    results = write(tmp_path / "results.json", [result(70, bbox, 0.5) for bbox in boxes])
    assert [bbox for bbox, _ in propose(folder, results, truth)[70]] == boxes


class TwoBoxes:
    """Stands in for a detector: finds a box of each class in every image."""

    categories = Categories((4, 9), ("cat", "dog"))
    reading, trained_with = ImageReading(exif="apply"), AS_STORED

    def __call__(self, image: Image.Image) -> dict[str, Tensor]:
        boxes = torch.tensor([[1.0, 1, 21, 21], [25, 10, image.width - 10, 30]])
        return {"boxes": boxes, "scores": torch.tensor([0.9, 0.8]), "labels": torch.tensor([1, 0])}


def test_the_file_of_predict_is_matched_by_file_name(folder: Path, tmp_path: Path) -> None:
    predict(TwoBoxes(), folder, tmp_path / "detections")  # type: ignore[arg-type]
    detections = tmp_path / "detections" / "detections.json"
    numbered = {i["file_name"]: i["id"] for i in json.loads(detections.read_text())["images"]}
    assert numbered == {"a.png": 1, "b.png": 2}  # not the ids of the annotations
    assert propose(folder, detections, coco(tmp_path)) == {
        70: [([1, 1, 20, 20], 1.0), ([25, 10, 65, 20], 0.5)][:1],  # ratio of the other: 3.25
        30: [([1, 1, 20, 20], 1.0), ([25, 10, 15, 20], 0.5)],
    }


def test_the_file_of_predict_can_list_the_images_too(folder: Path, tmp_path: Path) -> None:
    predict(TwoBoxes(), folder, tmp_path / "detections")  # type: ignore[arg-type]
    detections, output = tmp_path / "detections" / "detections.json", tmp_path / "out.json"
    assert main(["--images", str(folder), "--output", str(output), "--source", str(detections),
                 "--annotations", str(detections), "--workers", "1"]) == 0
    content = json.loads(output.read_text())
    assert [image["file_name"] for image in content["images"]] == ["a.png", "b.png"]
    assert len(content["annotations"]) == 3


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (7, "is not an object"),
        ({"image_id": 70, "bbox": [1, 1, 5, 5]}, "has no 'score'"),
        ({"image_id": 70, "score": 0.5}, "has no 'bbox'"),
        ({"bbox": [1, 1, 5, 5], "score": 0.5}, "has no 'image_id'"),
        (result([70], [1, 1, 5, 5], 0.5), "image_id that is not an integer"),
        (result(70, [1, 1, 5], 0.5), "bbox that is not four finite numbers"),
        (result(70, [1, 1, 5, "5"], 0.5), "bbox that is not four finite numbers"),
        (result(70, [1, 1, 5, float("nan")], 0.5), "bbox that is not four finite numbers"),
        (result(70, [1, 1, 5, 10**400], 0.5), "bbox that is not four finite numbers"),
        (result(70, [1, 1, 5, 5], "high"), "score that is not a finite number"),
        (result(70, [1, 1, 5, 5], float("inf")), "score that is not a finite number"),
        (result(70, [1, 1, 5, 5], None), "score that is not a finite number"),
    ],
)
@pytest.mark.parametrize("form", ["list", "dict"])
def test_malformed_entries_are_named(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    entry: Any, words: str, form: str,
) -> None:
    truth = coco(tmp_path)
    entries = [result(70, [1, 1, 5, 5], 0.5), entry]
    content: Any = entries
    if form == "dict":
        content = {"images": IMAGES, "annotations": entries, "categories": CATEGORIES}
    bad = write(tmp_path / "bad.json", content)
    message = error(capsys, "--images", folder, "--output", tmp_path / "out.json",
                    "--source", bad, "--annotations", truth)
    assert str(bad) in message
    assert "entry 2 of the results" in message
    assert words in message
    assert not (tmp_path / "out.json").exists()


def test_files_that_are_no_results(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truth = coco(tmp_path)
    common = ("--images", folder, "--output", tmp_path / "out.json", "--annotations", truth)
    assert "absent.json: no such file; use search, gt" in error(
        capsys, *common, "--source", "absent.json")
    text = tmp_path / "text.json"
    text.write_text("no JSON")
    assert f"{text}: not valid JSON" in error(capsys, *common, "--source", text)
    number = write(tmp_path / "number.json", 7)
    assert f"{number}: not a COCO JSON" in error(capsys, *common, "--source", number)
    others = write(tmp_path / "others.json", [result(1, [1, 1, 5, 5], 0.5)])
    assert f"{others}: has boxes for none of the images in {truth}" in error(
        capsys, *common, "--source", others)


def test_no_detection_at_all_is_no_error(folder: Path, tmp_path: Path) -> None:
    results = write(tmp_path / "results.json", [])
    assert propose(folder, results, coco(tmp_path)) == {70: [], 30: []}


def test_an_image_that_is_listed_twice(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = {"images": [*IMAGES, {**IMAGES[0], "id": 8}], "annotations": [], "categories": []}
    twice = write(tmp_path / "twice.json", content)
    message = error(capsys, "--images", folder, "--output", tmp_path / "out.json",
                    "--annotations", twice)
    assert f"{twice}: lists the image 'b.png' twice" in message
    empty = write(tmp_path / "empty.json", {"images": [], "annotations": [], "categories": []})
    message = error(capsys, "--images", folder, "--output", tmp_path / "out.json",
                    "--annotations", empty)
    assert f"{empty}: lists no image" in message


def test_other_given_boxes_are_other_settings(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A journal of one label file must not be used for another."""
    (folder / "b.png").unlink()  # so that the first run keeps its journal
    truth, output = coco(tmp_path, label(30, [1, 1, 5, 5])), tmp_path / "out.json"
    arguments = ["--images", str(folder), "--output", str(output), "--source", "gt",
                 "--annotations", str(truth), "--workers", "1"]
    assert main(arguments) == 1
    coco(tmp_path, label(30, [2, 2, 5, 5]))
    capsys.readouterr()
    assert main(arguments) == 1
    stderr = capsys.readouterr().err
    assert "other settings; starting over" in stderr
    assert [a["bbox"] for a in json.loads(output.read_text())["annotations"]] == [[2, 2, 5, 5]]
    assert main(arguments) == 1
    assert "resuming: 1 of 2 images are done" in capsys.readouterr().err


@pytest.mark.parametrize("name", list(SAME))
def test_annotations_as_tools_write_them(tmp_path: Path, name: str) -> None:
    """For each source the output is that of the plain file, up to the ids, which it keeps."""
    images, plain_file = write_coco(tmp_path / "plain", plain())
    content = plain()
    SAME[name](content)
    _, changed = write_coco(tmp_path, content)
    entry = load_coco(changed)["images"][0]
    results = write(tmp_path / "results.json", [result(entry["id"], [3, 3, 20, 20], 0.5)])
    plain_results = write(tmp_path / "plain.json", [result(1, [3, 3, 20, 20], 0.5)])
    for source, plain_source in (("gt", "gt"), (results, plain_results)):
        outputs = []
        for file, given in ((plain_file, plain_source), (changed, source)):
            output = tmp_path / "out.json"
            assert main(["--images", str(images), "--output", str(output), "--workers", "1",
                         "--source", str(given), "--annotations", str(file)]) == 0
            outputs.append(json.loads(output.read_text()))
        expected, found = outputs
        kept = {entry["id"] for entry in load_coco(changed)["images"]}
        assert {image["id"] for image in found["images"]} == kept
        assert by_file(found) == by_file(expected)


def by_file(content: dict[str, Any]) -> dict[str, list[Any]]:
    """Size and boxes of each image by its file."""
    return {
        image["file_name"]: [image["width"], image["height"]]
        + [a["bbox"] for a in content["annotations"] if a["image_id"] == image["id"]]
        for image in content["images"]
    }


@pytest.mark.parametrize("rest", [{}, {"categories": CATEGORIES}, {"annotations": []}])
def test_a_list_of_images_without_labels(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], rest: dict[str, Any]
) -> None:
    """As COCO's own lists of unlabelled images; only labels as proposals need more."""
    listed = write(tmp_path / "info.json", {"info": {}, "images": IMAGES, **rest})
    results = write(tmp_path / "results.json", [result(70, [10, 10, 20, 20], 0.3)])
    assert propose(folder, "search", listed).keys() == {70, 30}
    assert propose(folder, results, listed) == {70: [([10, 10, 20, 20], 1.0)], 30: []}
    message = error(capsys, "--images", folder, "--output", tmp_path / "out.json",
                    "--source", "gt", "--annotations", listed)
    assert "has no list" in message


def test_labels_that_are_all_crowds(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truth = coco(tmp_path, label(70, [1, 1, 9, 9], crowd=1), label(30, [1, 1, 9, 9], crowd=1))
    message = error(capsys, "--images", folder, "--output", tmp_path / "out.json",
                    "--source", "gt", "--annotations", truth)
    assert f"{truth}: none of its 2 boxes can be used" in message


def test_names_written_elsewhere_meet_the_results_of_predict(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same file under three names: in the annotations, the results and the recall."""
    def named(prefix: str, number: int) -> list[dict[str, Any]]:
        return [{**e, "id": e["id"] + number, "file_name": prefix + e["file_name"]}
                for e in IMAGES]

    truth = write(tmp_path / "truth.json", {"images": named("images\\", 0)})
    found = {"images": named("/home/ann/", 1), "categories": CATEGORIES,
             "annotations": [result(71, [10, 10, 20, 20], 0.3)]}
    results = write(tmp_path / "results.json", found)
    recall = write(tmp_path / "recall.json", {
        "images": named("./", 2) + named("", 3), "categories": CATEGORIES,  # both listed twice
        "annotations": [label(72, [10, 10, 20, 20]), label(73, [50, 10, 20, 20])]})
    output = tmp_path / "out.json"
    assert main(["--images", str(folder), "--output", str(output), "--source", str(results),
                 "--annotations", str(truth), "--recall", str(recall), "--workers", "1"]) == 0
    content = json.loads(output.read_text())
    assert content["images"] == IMAGES  # the names of the files
    assert [(a["image_id"], a["bbox"]) for a in content["annotations"]] == [(70, [10, 10, 20, 20])]
    assert "2 objects: recall at IoU 0.5 50.0 %" in capsys.readouterr().out


def test_images_outside_of_the_folder_only_if_that_is_allowed(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "a.png").rename(tmp_path / "a.png")
    truth = coco(tmp_path, label(70, [10, 10, 40, 40]), label(30, [5, 5, 20, 20]))
    content = json.loads(truth.read_text())
    content["images"][1]["file_name"] = "../a.png"
    write(truth, content)
    arguments = ["--images", str(folder), "--output", str(tmp_path / "o.json"), "--workers", "1",
                 "--source", "gt", "--annotations", str(truth)]  # fmt: skip
    assert main(arguments) == 1
    assert "truth.json: the file_name '../a.png' leads out" in capsys.readouterr().err
    assert main([*arguments, "--allow-outside", "--recall", str(truth)]) == 0
    images = json.loads((tmp_path / "o.json").read_text())["images"]
    assert [entry["file_name"] for entry in images] == ["b.png", "../a.png"]
