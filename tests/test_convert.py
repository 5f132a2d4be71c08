"""`python -m data.convert`: a COCO truth is written as VOC and as YOLO by a few lines of this file,
converted back, and must be the same boxes."""

from __future__ import annotations

import json
import random
import shlex

import numpy as np
import pytest
from pycocotools.coco import COCO

from data import convert, subset
from data.build import DataConfig, SplitConfig, build_train
from data.convert_options import read_classes
from data.errors import DataError
from data.masks import decode
from data.voc import CLASSES
from tests.helpers.labelled_folder import voc_xml, write_image, write_text

NAMES = ("fish", "Zebra", "jelly fish", "nobody")  # the last one occurs in no image


def make_truth(images, seed):
    """For each image: name, width, height, and its boxes (class, x, y, w, h), in float64."""
    draw = random.Random(seed)
    truth = []
    for number in range(images):
        width, height = draw.randint(30, 60), draw.randint(30, 60)
        boxes = []
        for _ in range(draw.randint(0, 4)):
            x, y = draw.uniform(0, width - 10), draw.uniform(0, height - 10)
            w, h = draw.uniform(1, width - x), draw.uniform(1, height - y)
            boxes.append((draw.choice(NAMES[:3]), x, y, w, h))
        truth.append((f"photo {number}.png", width, height, boxes))
    return truth


def write_voc(folder, truth, first_pixel):
    """LabelImg and Roboflow: images and XML side by side."""
    edge = [("fish", 0, 0, 30, 30)]  # tells what the corners count from
    for number, (name, width, height, boxes) in enumerate(truth):
        write_image(folder / name, width, height)
        corners = [
            (c, x + first_pixel, y + first_pixel, x + w, y + h)
            for c, x, y, w, h in boxes + (edge if number == 0 else [])
        ]
        xml = voc_xml(corners, name, width, height)
        write_text((folder / name).with_suffix(".xml"), xml)
    name, width, height, boxes = truth[0]
    return [(name, width, height, boxes + edge), *truth[1:]]


def write_yolo(folder, truth):
    """Roboflow: `images` and `labels`."""
    for name, width, height, boxes in truth:
        write_image(folder / "images" / name, width, height)
        lines = [
            f"{NAMES.index(c)} {(x + w / 2) / width!r} {(y + h / 2) / height!r} "
            f"{w / width!r} {h / height!r}\n"
            for c, x, y, w, h in boxes
        ]
        write_text((folder / "labels" / name).with_suffix(".txt"), "".join(lines))


def assert_same(path, truth):
    """A COCO JSON holds exactly these images and boxes."""
    content = json.loads(path.read_text())
    name_of = {entry["id"]: entry["name"] for entry in content["categories"]}
    assert list(name_of) == list(range(1, len(name_of) + 1))
    assert [entry["id"] for entry in content["annotations"]] == list(
        range(1, len(content["annotations"]) + 1)
    )
    found = {}
    for image in content["images"]:
        boxes = [
            (name_of[entry["category_id"]], *entry["bbox"])
            for entry in content["annotations"]
            if entry["image_id"] == image["id"]
        ]
        found[image["file_name"].split("/")[-1]] = (image["width"], image["height"], boxes)
    assert sorted(found) == sorted(name for name, *_ in truth)
    for name, width, height, boxes in truth:
        assert found[name][:2] == (width, height)
        for got, wanted in zip(found[name][2], boxes, strict=True):
            assert got[0] == wanted[0]
            # Sides of up to 60 px went through a few float64 operations, each exact to 2^-53.
            assert got[1:] == pytest.approx(wanted[1:], rel=0, abs=60 * 16 * 2**-53)


def run(*arguments):
    return convert.main([str(argument) for argument in arguments])


@pytest.mark.parametrize("first_pixel", [0, 1])
def test_voc_there_and_back(tmp_path, first_pixel):
    truth = write_voc(tmp_path / "set", make_truth(12, seed=0), first_pixel)
    output = tmp_path / "labels.json"
    assert run(tmp_path / "set", "--output", output) == 0
    assert_same(output, truth)
    COCO(str(output))


@pytest.mark.parametrize("source", ["", "data.yaml"])
def test_yolo_there_and_back(tmp_path, source):
    truth = make_truth(12, seed=1)
    write_yolo(tmp_path / "set" / "train", truth)
    description = f"train: ../train/images\nnames: {list(NAMES)}\n"
    write_text(tmp_path / "set" / "data.yaml", description)
    output = tmp_path / "labels.json"
    assert run(tmp_path / "set" / source, "--output", output) == 0
    assert_same(output, truth)
    names = [entry["name"] for entry in json.loads(output.read_text())["categories"]]
    assert names == list(NAMES)  # those without a box, too


@pytest.mark.parametrize("kind", ["voc", "yolo"])
def test_splits_share_their_categories_and_the_printed_values_train(tmp_path, capsys, kind):
    source = tmp_path / "my set"
    parts = {"train": make_truth(6, seed=2), "val": make_truth(2, seed=3)}
    for split, folder in (("train", "train"), ("val", "valid")):
        if kind == "voc":
            parts[split] = write_voc(source / folder, parts[split], 1)
        else:
            write_yolo(source / folder, parts[split])
    if kind == "yolo":
        write_text(source / "classes.txt", "\n".join(NAMES))
    assert run(source, "--output", tmp_path / "labels.json") == 0
    files = {split: tmp_path / f"labels_{split}.json" for split in parts}
    for split, truth in parts.items():
        assert_same(files[split], truth)
    categories = [json.loads(file.read_text())["categories"] for file in files.values()]
    assert categories[0] == categories[1]
    last = capsys.readouterr().out.splitlines()[-2:]
    words = [word.split("=", 1) for line in last for word in shlex.split(line)[1:]]
    values = dict(words)
    assert values["data.val.annotations"] == str(files["val"])
    split = SplitConfig(values["data.train.images"], values["data.train.annotations"])
    dataset = build_train(DataConfig(train=split, skip_empty=False))
    assert len(dataset) == len(parts["train"])


@pytest.mark.parametrize(
    ("output", "options", "files"),
    [
        ("o.json", [], ["o_train.json", "o_val.json"]),
        ("o.json", ["--split", "valid"], ["o.json"]),
        ("o.json", ["--split", "all"], ["o.json"]),
        ("folder", [], ["folder/train.json", "folder/val.json"]),
        ("folder", ["--split", "train"], ["folder/train.json"]),
        ("labels.v2", [], ["labels.v2/train.json", "labels.v2/val.json"]),
    ],
)
def test_output_files(tmp_path, output, options, files):
    train, val = make_truth(3, seed=4), [("v.png", 40, 40, [])]
    write_voc(tmp_path / "set/train", train, 1)
    write_voc(tmp_path / "set/val", val, 1)
    assert run(tmp_path / "set", "--output", tmp_path / "out" / output, *options) == 0
    written = [p.relative_to(tmp_path / "out").as_posix() for p in tmp_path.glob("out/**/*.json")]
    assert sorted(written) == files
    if "all" in options:
        assert len(json.loads((tmp_path / "out/o.json").read_text())["images"]) == 4


def test_a_devkit_is_read_by_its_lists(tmp_path, capsys):
    for year, listed in (("VOC2007", "a\n"), ("VOC2012", "my photo 1\nb\n")):
        root = tmp_path / "VOCdevkit" / year
        for name in listed.split("\n")[:-1]:
            write_image(root / "JPEGImages" / f"{name}.jpg")
            write_text(root / "Annotations" / f"{name}.xml", voc_xml(file_name=f"{name}.jpg"))
        write_text(root / "ImageSets/Main/train.txt", listed)
        write_text(root / "ImageSets/Main/dog_train.txt", listed.replace("\n", "  1\n"))
        write_text(root / "ImageSets/Main/val.txt", "")
    assert run(tmp_path, "--output", tmp_path / "o.json") == 0
    content = json.loads((tmp_path / "o.json").read_text())
    assert [image["file_name"] for image in content["images"]] == [
        "VOCdevkit/VOC2007/JPEGImages/a.jpg",
        "VOCdevkit/VOC2012/JPEGImages/my photo 1.jpg",
        "VOCdevkit/VOC2012/JPEGImages/b.jpg",
    ]
    assert [entry["name"] for entry in content["categories"]] == list(CLASSES)


def test_what_is_left_out_changed_and_guessed_is_printed(tmp_path, capsys):
    write_image(tmp_path / "a.jpg")
    write_image(tmp_path / "b.jpg")
    boxes = [("dog", 0, 0, 8, 9), ("Dog", 9, 9, 2, 1), ("dog", 0, 0, 30, 9), ("dog", 25, 1, 30, 9)]
    write_text(tmp_path / "a.xml", voc_xml(boxes))
    assert run(tmp_path, "--output", tmp_path / "o.json") == 0
    out = capsys.readouterr().out
    for sentence in (
        "guessed: corners are edges that count from 0 (4 touch 0, 2 touch 1; else --first-pixel 1)",
        "note: Dog and dog are different classes",
        "1 image, 3 boxes",
        "left out: boxes without area or outside their image: 1 (first: ",
        "changed: boxes with swapped corners, put in order: 1 (first: ",
        "changed: boxes that stick out of their image, clipped: 1 (first: ",
        "note: images without XML, not taken (see --keep-unlabelled): 1 (first: ",
        "2 classes: Dog 1, dog 2",
        f"use: data.train.images={tmp_path} data.train.annotations={tmp_path}/o.json",
    ):
        assert sentence in out
    assert run(tmp_path, "--output", tmp_path / "o.json", "--classes", "dog") == 0
    assert "1 class: dog 3" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "no such folder"),
        ({"a.txt": "hello"}, "holds no labels that can be converted"),
        ({"x.json": '{"images": [], "annotations": []}'}, "x.json: is COCO JSON already; use it"),
        ({"x.json": '{"shapes": []}'}, "is JSON, but not COCO's; export"),
        (
            {"a.xml": voc_xml(), "a.jpg": "", "labels/a.txt": "0 1 1 1 1"},
            "both.*--kind voc or --kind yolo",
        ),
        ({"a.xml": "<annotation>"}, "not readable as XML"),
        ({"a.xml": "<annotations/>"}, "no labelled image can be used"),
    ],
)
def test_sources_that_cannot_be_converted(tmp_path, capsys, files, message):
    for name, text in files.items():
        write_text(tmp_path / "set" / name, text)
    assert run(tmp_path / "set", "--output", tmp_path / "o.json") == 1
    error = capsys.readouterr().err.splitlines()[-1]
    pattern = message.replace(".*", "\0")
    assert error.startswith("error: ")
    assert all(part in error for part in pattern.split("\0"))
    assert not (tmp_path / "o.json").exists()


def test_the_kind_can_be_told(tmp_path):
    write_image(tmp_path / "set" / "a.jpg")
    write_text(tmp_path / "set" / "a.xml", voc_xml())
    write_text(tmp_path / "set" / "a.txt", "0 0.5 0.5 0.5 0.5")
    for kind, boxes in (("voc", [0, 0, 10, 5]), ("yolo", [5, 2.5, 10, 5])):
        arguments = ["--kind", kind, "--classes", "dog", "--output", tmp_path / "o.json"]
        assert run(tmp_path / "set", *arguments) == 0
        (annotation,) = json.loads((tmp_path / "o.json").read_text())["annotations"]
        assert annotation["bbox"] == boxes


@pytest.mark.parametrize(("label", "text"), [("a.XML", voc_xml()), ("a.TXT", "0 0.5 0.5 1 1")])
def test_suffixes_in_capitals(tmp_path, label, text):
    write_image(tmp_path / "a.JPG")
    write_text(tmp_path / label, text)
    assert run(tmp_path, "--output", tmp_path / "o.json", "--classes", "dog") == 0
    assert len(json.loads((tmp_path / "o.json").read_text())["annotations"]) == 1


def test_classes_as_a_long_list_and_as_a_file_in_utf_16(tmp_path):
    names = tuple(f"class {number}" for number in range(80))
    assert read_classes(",".join(names)) == names
    (tmp_path / "names").write_text("café\n\nthé \n", encoding="utf-16")
    assert read_classes(str(tmp_path / "names")) == ("café", "thé")
    (tmp_path / "names").write_bytes("café".encode("latin-1"))
    with pytest.raises(DataError, match="names: is not UTF-8 text; save it as UTF-8"):
        read_classes(str(tmp_path / "names"))


@pytest.mark.parametrize("classes", ["dog,dog", ",", "gone.txt"])
def test_bad_classes_are_named(tmp_path, capsys, classes):
    write_image(tmp_path / "a.jpg")
    write_text(tmp_path / "a.xml", voc_xml())
    assert run(tmp_path, "--output", tmp_path / "o.json", "--classes", classes) == 1
    assert f"error: --classes {classes}: " in capsys.readouterr().err


def test_classes_from_a_file(tmp_path):
    write_image(tmp_path / "a.jpg")
    write_text(tmp_path / "a.xml", voc_xml())
    write_text(tmp_path / "names", "\ufeffcat\r\n\r\ndog\n")
    arguments = ["--output", tmp_path / "o.json", "--classes", tmp_path / "names"]
    assert run(tmp_path, *arguments) == 0
    content = json.loads((tmp_path / "o.json").read_text())
    assert [entry["name"] for entry in content["categories"]] == ["cat", "dog"]
    assert content["annotations"][0]["category_id"] == 2


def test_images_elsewhere(tmp_path):
    write_image(tmp_path / "photos" / "deep" / "a.png")
    write_text(tmp_path / "xml" / "a.xml", voc_xml(file_name="a.png"))
    arguments = ["--output", tmp_path / "o.json", "--images-root", tmp_path / "photos"]
    assert run(tmp_path / "xml", *arguments) == 0
    (image,) = json.loads((tmp_path / "o.json").read_text())["images"]
    assert image["file_name"] == "deep/a.png"


@pytest.mark.parametrize("kind", ["voc", "yolo"])
def test_a_test_set_without_labels_is_left_out(tmp_path, capsys, kind):
    source, truth = tmp_path / "set", make_truth(3, seed=5)
    if kind == "voc":
        truth = write_voc(source / "train", truth, 1)
    else:
        write_yolo(source / "train", truth)
        write_text(source / "data.yaml", f"train: train\ntest: test\nnames: {list(NAMES)}\n")
    write_image(source / "test" / "images" / "t.png")
    assert run(source, "--output", tmp_path / "o.json") == 0
    out = capsys.readouterr().out
    assert "left out: no labelled image of test can be used (note: images without" in out
    assert_same(tmp_path / "o.json", truth)
    assert run(source, "--output", tmp_path / "o.json", "--split", "test") == 1
    assert "no labelled image of test" in capsys.readouterr().err
    arguments = ["--output", tmp_path / "all.json", "--keep-unlabelled"]
    assert run(source, *arguments) == 0
    assert len(json.loads((tmp_path / "all_test.json").read_text())["images"]) == 1


def test_yolo_labels_elsewhere(tmp_path):
    write_image(tmp_path / "photos" / "a.png")
    write_text(tmp_path / "labels" / "a.txt", "0 0.5 0.5 0.5 0.5")
    arguments = ["--images-root", tmp_path / "photos", "--classes", "dog"]
    assert run(tmp_path / "labels", "--output", tmp_path / "o.json", *arguments) == 0
    content = json.loads((tmp_path / "o.json").read_text())
    assert [image["file_name"] for image in content["images"]] == ["a.png"]
    assert [entry["bbox"] for entry in content["annotations"]] == [[5, 2.5, 10, 5]]


def test_polygons_of_yolo_become_masks(tmp_path, capsys):
    """A low-data subset keeps them, too."""
    write_image(tmp_path / "set/a.jpg")  # 20 x 10
    write_text(tmp_path / "set/a.txt", "0 0.1 0.2 0.5 0.2 0.5 0.8 0.1 0.8\n0 0.5 0.5 0.5 0.4\n")
    write_text(tmp_path / "set/classes.txt", "dog")
    output = tmp_path / "labels.json"
    assert run(tmp_path / "set", "--output", output) == 0
    assert "polygons, kept as masks, with the box around them: 1" in capsys.readouterr().out
    assert subset.main(["--annotations", str(output), "--percent", "100", "--fold", "0",
                        "--output", str(tmp_path / "subset.json")]) == 0  # fmt: skip
    for file in (output, tmp_path / "subset.json"):
        split = SplitConfig(str(tmp_path / "set"), str(file))
        record = build_train(DataConfig(train=split), with_masks=True).coco.records[0]
        assert record.boxes.tolist() == [[2, 2, 10, 8], [5, 3, 15, 7]]
        expected = np.zeros((10, 20), np.uint8)
        expected[2:8, 2:10] = 1
        assert np.array_equal(decode(record.masks, 10, 20), [expected, 0 * expected])
