"""`python -m data.check`: small data sets with faults put in, each of which must be said."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from aligndet import check_data
from aligndet.config import build_config, dump_yaml

ROOT = Path(__file__).resolve().parent.parent


def write_photo(path, width=96, height=64, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def make_set(folder, images=12):
    """Photographs with one box each, of two classes; returns the COCO dict, not yet written."""
    content = {"images": [], "annotations": [], "categories": []}
    content["categories"] = [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}]
    for number in range(1, images + 1):
        name = f"{number}.jpg"
        write_photo(folder / name, seed=number)
        content["images"].append({"id": number, "file_name": name, "width": 96, "height": 64})
        content["annotations"].append(
            {"id": number, "image_id": number, "category_id": 1 + number % 2, "iscrowd": 0,
             "bbox": [4, 4, 40, 40], "area": 1600}
        )  # fmt: skip
    return content


def write_config(tmp_path, **sections):
    config = {
        "output_dir": str(tmp_path / "run"),
        "data": {
            "train": {
                "images": str(tmp_path / "train"),
                "annotations": str(tmp_path / "train.json"),
            },
            "val": {"images": str(tmp_path / "val"), "annotations": str(tmp_path / "val.json")},
            "short_sides": [64],
            "max_side": 96,
        },
        "model": {"detector": "fcos", "backbone": "resnet18"},
        **sections,
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    return tmp_path / "config.yaml"


def labelled(tmp_path, train=None, val=None):
    for name, change in (("train", train), ("val", val)):
        content = make_set(tmp_path / name)
        if change is not None:
            change(content, tmp_path / name)
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    return write_config(tmp_path)


def run(capsys, config, *arguments):
    status = check_data.main(["--config", str(config), *arguments])
    out, err = capsys.readouterr()
    return status, err + out


def test_a_good_set(tmp_path, capsys):
    status, out = run(capsys, labelled(tmp_path))
    assert status == 0
    assert "fine-tuning" in out
    assert out.count("12 images, 12 boxes, 2 classes") == 2
    assert "boxes per image: 1 to 1, median 1" in out
    assert "as the network sees them, short side 64: 96 x 64" in out
    assert "the labels scored against themselves: AP 100.0" in out
    assert out.endswith("no problems: training can start\n")
    assert len(out.splitlines()) <= 60
    assert not (tmp_path / "run").exists()


def put_in_ten_faults(content, folder):
    images, annotations = content["images"], content["annotations"]
    photo = folder / "1.jpg"
    photo.write_bytes(photo.read_bytes()[: photo.stat().st_size // 2])  # truncated
    (folder / "2.jpg").unlink()  # missing
    images[2]["width"] = 90  # wrong size
    annotations[3]["bbox"] = [500, 4, 40, 40]  # outside
    annotations[4]["bbox"] = [4, 4, 0, 40]  # without area
    annotations[5]["category_id"] = 99  # unknown
    annotations[6]["iscrowd"] = 1
    annotations[7]["bbox"] = [5, 5, 2, 2]  # tiny: between the points
    (folder / "9.jpg").write_text("<html>not found</html>")  # unreadable
    del annotations[9]  # without labels


def test_ten_faults_are_all_said(tmp_path, capsys):
    status, out = run(capsys, labelled(tmp_path, put_in_ten_faults))
    assert status == 1
    page, problems = out.split("7 problems that training would stop at:\n")
    train = page.split("\nval: ")[0]
    assert "1 crowd box" in train
    assert "images without a box" in train
    assert re.search(r"1 of \d boxes have no positive", train)
    lines = problems.splitlines()
    assert len(lines) == 7
    for name, what in (
        ("1.jpg", "image is truncated"),
        ("2.jpg", "image is missing"),
        ("3.jpg", "has 96 x 64 pixels, but"),
        ("annotation 4", "lies outside the image"),
        ("annotation 5", "has no area"),
        ("annotation 6", "category_id 99"),
        ("9.jpg", "image is truncated or unreadable (not an image)"),
    ):
        assert sum(name in line and what in line for line in lines) == 1
    assert not any("/tmp" in line and str(tmp_path) not in line for line in lines)


def put_in_masks(content, folder):
    for entry in content["annotations"][1:]:
        entry["segmentation"] = [[4, 4, 44, 4, 44, 44]]
    content["annotations"][2]["segmentation"] = {"size": [64, 96], "counts": [10, 20]}
    content["annotations"][3]["segmentation"] = [[4, 4, 44]]
    content["annotations"][4]["segmentation"] = [[4, 4, 44, 4]]


def test_polygons_are_checked_where_the_detector_learns_them(tmp_path, capsys):
    config = labelled(tmp_path, put_in_masks)
    status, out = run(capsys, config)
    assert status == 0
    assert "segmentation" not in out
    status, out = run(capsys, config, "model.detector=mask_rcnn")
    assert status == 1
    page, problems = out.split("3 problems that training would stop at:\n")
    assert "without a mask: 1 box, of which no mask is learned" in page.split("\nval: ")[0]
    for line, (number, what) in zip(
        problems.splitlines(),
        ((3, "for 30 pixels"), (4, "a polygon of 3 numbers"), (5, "of fewer than three points")),
        strict=True,
    ):
        assert f"train.json: annotation {number}: its segmentation has" in line
        assert what in line
    status, out = run(capsys, config, "model.detector=mask_rcnn", "data.bad_boxes=drop")
    assert "2 problems" in out
    assert "left out: 1 polygon of fewer than three points" in out


def test_polygons_of_val_are_checked(tmp_path, capsys):
    config = labelled(tmp_path, val=put_in_masks)
    (tmp_path / "train.json").write_text((tmp_path / "val.json").read_text())
    for name, good in (("train", range(2, 6)), ("val", range(4))):
        content = json.loads((tmp_path / f"{name}.json").read_text())
        for number in good:
            content["annotations"][number]["segmentation"] = [[4, 4, 44, 4, 44, 44]]
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    assert run(capsys, config, "model.detector=mask_rcnn")[0] == 0  # one is flat, as boxes may be
    content["annotations"][7]["segmentation"] = [[4, 4, 44]]
    (tmp_path / "val.json").write_text(json.dumps(content))
    status, out = run(capsys, config, "model.detector=mask_rcnn")
    assert status == 1
    assert "val.json: annotation 8: its segmentation has a polygon of 3 numbers" in out


def test_what_is_dropped_is_no_problem(tmp_path, capsys):
    def change(content, folder):
        content["annotations"][3]["bbox"] = [500, 4, 40, 40]

    config = labelled(tmp_path, change)
    assert run(capsys, config)[0] == 1
    status, out = run(capsys, config, "data.bad_boxes=drop")
    assert status == 0
    assert "left out: 1 box without area or outside the image, 1 image without a box" in out


def test_only_decoding_finds_some_faults(tmp_path, capsys):
    """A PNG whose end is there, but whose middle is damaged."""

    def change(content, folder):
        write_photo(folder / "1.png")
        data = bytearray((folder / "1.png").read_bytes())
        data[len(data) // 2 : len(data) // 2 + 200] = bytes(200)
        (folder / "1.png").write_bytes(data)
        content["images"][0]["file_name"] = "1.png"

    status, out = run(capsys, labelled(tmp_path, change))
    assert status == 1
    assert "1 problem that training would stop at:" in out
    assert "1.png: image is truncated or unreadable" in out


def test_crowds_that_are_kept_can_be_scored(tmp_path, capsys):
    """CVAT marks every mask as a crowd."""

    def mark(content, _):
        for entry in content["annotations"]:
            entry["iscrowd"] = 1

    config = labelled(tmp_path, mark, mark)
    status, out = run(capsys, config, "data.crowd=keep")
    assert status == 0
    assert "the labels scored against themselves: AP 100.0" in out
    status, out = run(capsys, config)
    assert status == 1
    assert "set data.crowd=keep" in out


def test_boxes_that_stick_out_or_have_no_area_do_not_lower_the_score(tmp_path, capsys):
    """Training clips the first and, of val, leaves out the second."""

    def stick_out(content, _):
        content["annotations"][0]["bbox"] = [-60, 4, 100, 40]

    def and_no_area(content, folder):
        stick_out(content, folder)
        content["annotations"][1]["bbox"] = [4, 4, 0, 40]

    status, out = run(capsys, labelled(tmp_path, stick_out, and_no_area))
    assert status == 0
    assert "the labels scored against themselves: AP 100.0" in out
    assert out.count("1 box that sticks out of its image (clipped)") == 2


def test_train_and_val_must_agree(tmp_path, capsys):
    def change(content, folder):
        content["categories"][0]["name"] = "wolf"

    status, out = run(capsys, labelled(tmp_path, val=change))
    assert status == 1
    assert "val.json: its categories differ from those of" in out


def test_images_in_train_and_val_are_noted(tmp_path, capsys):
    config = labelled(tmp_path)
    status, out = run(capsys, config, f"data.val.images={tmp_path / 'train'}")
    assert status == 0
    assert "note: 12 images in train and in val" in out


def test_labels_that_cannot_be_scored(tmp_path, capsys):
    def change(content, folder):
        content["annotations"].clear()

    status, out = run(capsys, labelled(tmp_path, val=change))
    assert status == 1
    assert "val.json: " in out.splitlines()[-1]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.val.annotations="], "data.val.annotations is not set"),
        (["data.train.annotations=gone.json"], "gone.json: no such file"),
        (["data.train.images=gone"], "gone: no such directory"),
        (["model.detector=fsoc"], "valid: fcos, retinanet"),
        (["model.options.chanels=3"], "chanels"),
        (["data.batch=3"], "data.batch"),
        (["schedule.iterations=60", "schedule.warmup_iterations=500"], "but the run has 60 steps"),
        (["schedule.epochs=2", "schedule.milestones=[8]"], "but the run has 2 epochs"),
    ],
)
def test_configs_that_training_refuses(tmp_path, capsys, overrides, message):
    arguments = [*overrides, "--stage", "finetune"]
    status, out = run(capsys, labelled(tmp_path), *arguments)
    assert status == 1
    assert message in out


@pytest.mark.parametrize("detector", ["fcos", "retinanet", "faster_rcnn"])
def test_every_detector_has_its_table(tmp_path, capsys, detector):
    status, out = run(capsys, labelled(tmp_path), f"model.detector={detector}")
    assert status == 0
    assert "boxes with none" in out


def test_box_domain_with_a_file_of_proposals(tmp_path, capsys):
    content = make_set(tmp_path / "train")
    content["categories"] = [{"id": 1, "name": "object"}]
    content["annotations"] = [
        {"id": n, "image_id": 1 + n % 12, "category_id": 1, "bbox": [n % 30, 4, 30, 30]}
        for n in range(60)
    ]
    (tmp_path / "proposals.json").write_text(json.dumps(content))
    config = write_config(tmp_path, box_domain={"max_proposals": 4})
    split = [f"data.train.proposals={tmp_path / 'proposals.json'}", "data.train.annotations="]
    status, out = run(capsys, config, *split)
    assert status == 0
    assert "box-domain pre-training" in out
    assert "12 images, 60 boxes" in out
    assert "proposals used per image: 4 to 4" in out
    assert [line.split()[1] for line in out.splitlines() if line.split()[:1] == ["16-32"]] == ["48"]
    status, out = run(capsys, config, *split, "data.batch_size=13")
    assert status == 1
    assert "data.train has 12 images, fewer than data.batch_size=13" in out
    masks = [*split, "model.detector=mask_rcnn"]
    assert run(capsys, config, *masks, "box_domain.mask_weight=0")[0] == 0
    status, out = run(capsys, config, *masks)
    assert status == 1
    assert "none of its boxes has a mask ('segmentation'); add them" in out


def test_box_domain_with_a_search(tmp_path, capsys):
    make_set(tmp_path / "train")
    config = write_config(tmp_path)
    status, out = run(capsys, config, "data.train.annotations=")
    assert status == 0
    assert "boxes are searched for" in out
    assert "12 images" in out
    late = ["schedule.epochs=1", "schedule.warmup_iterations=6"]
    status, out = run(capsys, config, "data.train.annotations=", *late)
    assert status == 1
    assert "but the run has 6 steps" in out


def test_image_domain(tmp_path, capsys):
    for name in ("dog/1.png", "dog/2.png", "cat/3.png"):
        write_photo(tmp_path / "train" / name)
    config = write_config(tmp_path, image={"method": "supervised"})
    status, out = run(capsys, config, "data.train.annotations=", "data.batch_size=2")
    assert status == 0
    assert "image-domain pre-training" in out
    assert "3 images" in out
    assert out.index("dog         2") < out.index("cat         1")
    for name in ("dog/1.png", "cat/3.png"):
        (tmp_path / "train" / name).write_bytes(b"no")
    status, out = run(capsys, config, "data.train.annotations=", "data.batch_size=2")
    assert status == 1
    assert "2 problems" in out
    assert "dog/1.png" in out
    assert "cat/3.png" in out


@pytest.mark.parametrize(
    ("given", "stage"),
    [
        ({}, "fine-tuning"),
        ({"data.train.annotations": None, "data.train.proposals": "boxes.json"}, "box-domain"),
        ({"data.train.annotations": None, "box_domain.max_proposals": 9}, "box-domain"),
        ({"data.train.annotations": None}, "image-domain"),
    ],
)
def test_the_stage_of_a_config_that_names_every_key(tmp_path, capsys, given, stage):
    labelled(tmp_path)
    content = yaml.safe_load((tmp_path / "config.yaml").read_text())
    for key, value in given.items():
        section = content
        for part in key.split(".")[:-1]:
            section = section.setdefault(part, {})
        section[key.split(".")[-1]] = value
    config = tmp_path / "resolved.yaml"
    config.write_text(dump_yaml(build_config(content)))
    _, out = run(capsys, config)
    assert f"resolved.yaml: {stage}" in out


def test_a_queue_longer_than_the_images_is_noted(tmp_path, capsys):
    make_set(tmp_path / "train")
    config = write_config(tmp_path, image={"method": "moco_v2", "norm_groups": 1})
    status, out = run(capsys, config, "data.train.annotations=")
    assert status == 0
    assert "note: image.moco.queue is 65,536" in out


def test_the_command(tmp_path):
    command = [sys.executable, "-m", "data.check", "--config", str(tmp_path / "gone.yaml")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "no such config" in done.stderr


def test_images_that_training_would_skip_are_no_problem(tmp_path, capsys):
    def damage(content, folder):
        whole = (folder / "7.jpg").read_bytes()
        (folder / "7.jpg").write_bytes(whole[: len(whole) // 2] + b"\xff\xd9")

    config = labelled(tmp_path, train=damage)
    status, out = run(capsys, config)
    assert status == 1
    assert "7.jpg: image is truncated" in out
    assert "1 problem that" in out
    status, out = run(capsys, config, "data.on_bad_image=skip")
    assert status == 0
    assert f"skipped: {tmp_path}/train/7.jpg: image is truncated" in out
