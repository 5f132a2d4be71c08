"""Prediction: which images with which ids, what is written where, and what is refused."""

from __future__ import annotations

import contextlib
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from aligndet import predict as module
from aligndet.predict import predict
from data.coco import Categories
from data.errors import DataError
from data.images import ImageReading

NAMES = ("cat", "dog")
BOXES = torch.tensor([[1.0, 1, 21, 21], [5, 6, 9, 30], [0, 0, 7, 5]])
SCORES = torch.tensor([0.9, 0.5, 0.1])


class ThreeBoxes:
    """Stands in for a detector."""

    categories = Categories((4, 9), NAMES)
    reading, trained_with = ImageReading(exif="apply"), ImageReading()

    def __call__(self, image):
        assert image.mode == "RGB"
        return {"boxes": BOXES, "scores": SCORES, "labels": torch.tensor([1, 0, 1])}


class ThreeMasks(ThreeBoxes):
    """Stands in for a detector with masks: the left half of each box."""

    def __call__(self, image):
        halves = torch.zeros(3, 28, 28)
        halves[:, :, :14] = 1
        return {**super().__call__(image), "masks": halves}


@pytest.fixture
def images(tmp_path):
    """A folder with a.png, a.jpg and sub/a.png, 30 x 40 pixels."""
    folder = tmp_path / "images"
    (folder / "sub").mkdir(parents=True)
    for name in ("a.png", "a.jpg", "sub/a.png"):
        Image.new("RGB", (30, 40), "white").save(folder / name)
    return folder


def coco(path, names, categories=((4, "cat"), (9, "dog")), size=(30, 40)):
    entries = [
        {"id": 70 + i, "file_name": n, "width": size[0], "height": size[1], "date": "today"}
        for i, n in enumerate(names)
    ]
    classes = [{"id": i, "name": n} for i, n in categories]
    path.write_text(json.dumps({"images": entries, "annotations": [], "categories": classes}))
    return path


def written(output):
    return json.loads((output / "detections.json").read_text())


def files(output):
    return sorted(p.relative_to(output).as_posix() for p in output.rglob("*") if p.is_file())


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_pictures_never_collide(images, tmp_path, suffix, capsys):
    predict(ThreeBoxes(), images, tmp_path / "out", suffix=suffix)
    names = ["a.jpg", "a.png", "sub/a.png"]
    assert files(tmp_path / "out") == [*(f"{n}.{suffix}" for n in names[:2]), "detections.json",
                                       f"sub/a.png.{suffix}"]  # fmt: skip
    for name in names:
        with Image.open(tmp_path / "out" / f"{name}.{suffix}") as picture:
            assert picture.format == {"jpg": "JPEG", "png": "PNG"}[suffix]
            assert picture.size == (30, 40)
    last = capsys.readouterr().out.splitlines()[-1]
    out = tmp_path / "out"
    assert last == (
        f"3 images, 6 detections of at least 0.3: {out}/*.{suffix} and {out}/detections.json"
    )


def test_content_of_the_json(images, tmp_path):
    predict(ThreeBoxes(), images, tmp_path / "out")
    content = written(tmp_path / "out")
    assert list(content) == ["images", "annotations", "categories"]
    assert content["images"][0] == {"id": 1, "file_name": "a.jpg", "width": 30, "height": 40}
    first = {"id": 1, "image_id": 1, "category_id": 9, "bbox": [1, 1, 20, 20], "area": 400}
    assert content["annotations"][0] == {
        **first, "iscrowd": 0, "score": pytest.approx(0.9)
    }  # fmt: skip
    assert [a["id"] for a in content["annotations"]] == [1, 2, 3, 4, 5, 6]
    assert content["categories"] == [{"id": 4, "name": "cat"}, {"id": 9, "name": "dog"}]


def test_masks_are_drawn_and_written(images, tmp_path):
    """Boxes and scores as without masks; areas are those of the masks."""
    predict(ThreeBoxes(), images, tmp_path / "plain", suffix="png")
    predict(ThreeMasks(), images, tmp_path / "out", suffix="png")
    plain, content = written(tmp_path / "plain"), written(tmp_path / "out")
    for entry, without in zip(content["annotations"], plain["annotations"], strict=True):
        mask = coco_mask.decode(entry.pop("segmentation"))
        x, y, w, h = (int(side) for side in entry["bbox"])
        assert mask.shape == (40, 30)
        assert mask[y + 1 : y + h - 1, x + 1 : x + w // 2 - 1].all()
        assert not mask[:, x + w // 2 + 1 :].any()
        assert entry.pop("area") == mask.sum()
        assert entry == {k: v for k, v in without.items() if k != "area"}
    pictures = [np.asarray(Image.open(tmp_path / name / "a.png.png")) for name in ("plain", "out")]
    changed = (pictures[0] != pictures[1]).any(axis=2)
    assert changed[:, :12].sum() > 100
    assert not changed[:, 12:].any()


@pytest.mark.parametrize(
    ("thresholds", "in_json", "in_pictures"),
    [
        ({}, 2, 2),
        ({"threshold": 0.0}, 3, 3),
        ({"threshold": 0.95}, 0, 0),
        ({"threshold": 0.6, "json_threshold": 0.0}, 3, 1),
        ({"json_threshold": 0.9}, 1, 2),  # float32 0.9 is below 0.9 in float64: still at least 0.9
    ],
)
def test_thresholds(images, tmp_path, monkeypatch, capsys, thresholds, in_json, in_pictures):
    drawn = []

    def note(image, boxes, *rest):
        drawn.append(len(boxes))
        return image

    monkeypatch.setattr(module, "draw_boxes", note)
    predict(ThreeBoxes(), images / "a.png", tmp_path / "out", **thresholds)
    assert len(written(tmp_path / "out")["annotations"]) == in_json
    assert drawn == [in_pictures]
    said = capsys.readouterr().out
    assert ("no detection scores 0.95 or more; the best scores 0.90" in said) == (in_pictures == 0)


def test_annotations_give_the_images_and_ids(images, tmp_path):
    truth = coco(tmp_path / "truth.json", ["sub/a.png", "a.png"])
    predict(ThreeBoxes(), images, tmp_path / "out", annotations=truth)
    content = written(tmp_path / "out")
    assert [(i["id"], i["file_name"]) for i in content["images"]] == [(70, "sub/a.png"),
                                                                      (71, "a.png")]  # fmt: skip
    assert content["images"][0]["date"] == "today"
    assert {a["image_id"] for a in content["annotations"]} == {70, 71}
    with contextlib.redirect_stdout(io.StringIO()):
        found = COCO(str(truth)).loadRes(content["annotations"])
    assert len(found.getAnnIds(imgIds=[70])) == 2


@pytest.mark.parametrize(
    ("categories", "expected"),
    [
        ([(9, "dog"), (4, "cat"), (5, "bird")], (9, 4)),
        ([(1, "dog"), (2, "cat")], (1, 2)),  # by name
        ([(9, "dog"), (4, "cat"), (5, "cat")], (9, 4)),  # two cats, but one has the right id
        ([], (9, 4)),  # only a list of images
        ([(1, "dog")], "class 'cat' is not among its categories"),
        ([(1, "dog"), (2, "cat"), (3, "cat")], "class 'cat' is twice among its categories"),
    ],
)
def test_ids_of_classes(images, tmp_path, categories, expected):
    truth = coco(tmp_path / "truth.json", ["a.png"], categories)
    if isinstance(expected, str):
        with pytest.raises(DataError, match=f"truth.json: the detector's {expected}"):
            predict(ThreeBoxes(), images, tmp_path / "out", annotations=truth)
        assert not (tmp_path / "out").exists()
        return
    predict(ThreeBoxes(), images, tmp_path / "out", annotations=truth)
    content = written(tmp_path / "out")
    assert tuple(a["category_id"] for a in content["annotations"]) == expected
    assert {c["id"]: c["name"] for c in content["categories"]} == dict(zip(expected, NAMES[::-1],
                                                                          strict=True))  # fmt: skip


def test_images_that_cannot_be_used_are_named_before_the_last_line(images, tmp_path, capsys):
    (images / "a.png").write_bytes(b"no picture")
    truth = coco(tmp_path / "truth.json", ["gone.png", "a.png", "a.jpg"])
    predict(ThreeBoxes(), images, tmp_path / "out", annotations=truth)
    said = capsys.readouterr().out.splitlines()
    assert [line.startswith("left out: ") for line in said] == [True, True, False]
    assert "gone.png" in said[0]
    coco(truth, ["a.jpg"], size=(40, 30))
    with pytest.raises(DataError, match="a.jpg: has 30 x 40 pixels, but .* says 40 x 30"):
        predict(ThreeBoxes(), images, tmp_path / "out", annotations=truth)


def link(path, target):
    path.symlink_to(target)
    return path


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        (lambda t: (t / "images", t / "images" / "out"), "lies in the folder of the images"),
        (lambda t: (t / "images", t / "images"), "lies in the folder of the images"),
        (lambda t: (t / "images", t / "around"), "around/sub: lies in the folder"),
        (lambda t: (t / "images" / "sub" / "..", t / "images" / "out"), "lies in the folder"),
        (lambda t: (t / "images", link(t / "link", t / "images" / "sub")), "lies in the folder"),
        (lambda t: (link(t / "link", t / "images"), t / "images" / "out"), "lies in the folder"),
        (lambda t: (t / "images", t / "file"), "is a file; give --output a folder"),
    ],
)
def test_outputs_among_the_inputs_are_refused(images, tmp_path, chosen, words):
    (tmp_path / "file").write_text("")
    (tmp_path / "around").mkdir()
    link(tmp_path / "around" / "sub", images)  # where the picture of sub/a.png would be
    before = files(tmp_path)
    with pytest.raises(DataError, match=words):
        predict(ThreeBoxes(), *chosen(tmp_path))
    assert [f for f in files(tmp_path) if not f.startswith("link")] == before


def test_inputs_are_not_overwritten(images, tmp_path):
    """The images lie in the output folder: allowed, as long as no picture gets among them."""
    predict(ThreeBoxes(), images, tmp_path)
    predict(ThreeBoxes(), images / "a.png", images)  # beside the image: a.png.jpg
    (images / "a.png.jpg").unlink()
    (images / "images").mkdir()
    Image.new("RGB", (5, 5)).save(images / "images" / "b.png")
    Image.new("RGB", (5, 5)).save(images / "b.png.jpg")
    with pytest.raises(DataError, match="images: lies in the folder of the images"):
        predict(ThreeBoxes(), images, tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    link(other / "a.png.jpg", images / "b.png.jpg")
    content = (images / "b.png.jpg").read_bytes()
    truth = coco(tmp_path / "truth.json", ["a.png", "b.png.jpg"])
    with pytest.raises(DataError, match=r"a.png.jpg: would overwrite .*b.png.jpg, which is read"):
        predict(ThreeBoxes(), images, other, annotations=truth)
    assert (images / "b.png.jpg").read_bytes() == content


def test_the_annotations_are_not_overwritten(images, tmp_path):
    (tmp_path / "out").mkdir()
    truth = coco(tmp_path / "out" / "detections.json", ["a.png"])
    before = truth.read_bytes()
    with pytest.raises(DataError, match=r"detections.json: would overwrite .*detections.json"):
        predict(ThreeBoxes(), images, tmp_path / "out", annotations=truth)
    assert truth.read_bytes() == before


def test_names_outside_the_folder_have_pictures_in_the_output(images, tmp_path):
    names = ["../up.png", "a.png", str(tmp_path / "up.png")]
    Image.new("RGB", (30, 40)).save(tmp_path / "up.png")
    truth = coco(tmp_path / "truth.json", names)
    with pytest.raises(DataError, match=r"truth\.json: the file_name '\.\./up\.png' leads out"):
        predict(ThreeBoxes(), images, tmp_path / "out", annotations=truth)
    predict(ThreeBoxes(), images, tmp_path / "out", annotations=truth, allow_outside=True)
    assert len([f for f in files(tmp_path / "out") if f.endswith(".jpg")]) == 3


def test_a_folder_called_like_the_results_is_named_before_the_work(images, tmp_path):
    (images / "detections.json").mkdir()
    Image.new("RGB", (30, 40)).save(images / "detections.json" / "a.png")
    with pytest.raises(DataError, match=r"out/detections\.json: .*the name of a folder"):
        predict(ThreeBoxes(), images, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_missing_glyphs_are_said_once(images, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(ThreeBoxes, "categories", Categories((4, 9), ("猫", "größe")))
    predict(ThreeBoxes(), images, tmp_path / "out")
    said = capsys.readouterr().err
    assert said.count("no glyphs for 猫 ö ß") == 1
    assert written(tmp_path / "out")["categories"][0]["name"] == "猫"


@pytest.mark.parametrize("value", ["30", "-0.1", "nan"])
def test_a_threshold_is_a_score(script, capsys, value):
    with pytest.raises(SystemExit) as stop:
        script("aligndet.predict", "--weights", "w", "--images", "i", "--output", "o",
               "--threshold", value)  # fmt: skip
    assert stop.value.code == 2
    assert f"{value} is not a score in 0..1" in capsys.readouterr().err
