"""The page about runs: what stands on it, and that nothing else is needed to read it."""

from __future__ import annotations

import json
import re
import shutil
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
import yaml
from PIL import Image

from aligndet.config import load_config
from aligndet.reading_curves import readings, warnings_of
from aligndet.report import main, page, report_run
from aligndet.report_pictures import by_image, f1, most_telling, with_masks
from aligndet.run_files import RunFiles
from data import json_files

pytestmark = pytest.mark.usefixtures("small_backbones")

VOID = {"meta", "img"}
SCHEDULE = {"iterations": 40, "warmup_iterations": 0.05}


class Checked(HTMLParser):
    """Every tag is closed in its order; collects the text and what is referred to."""

    def __init__(self):
        super().__init__()
        self.open, self.text, self.sources = [], [], []

    def handle_starttag(self, tag, attributes):
        self.sources += [value for key, value in attributes if key in ("src", "href")]
        assert tag not in ("script", "link")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def read(text):
    checked = Checked()
    checked.feed(text.removeprefix("<!doctype html>"))
    assert checked.open == []
    assert all(source.startswith("data:image/jpeg;base64,") for source in checked.sources)
    assert "http" not in text.replace("http-equiv", "")
    return " ".join(" ".join(checked.text).split()), checked.sources


@pytest.fixture(scope="module")
def val(tmp_path_factory):
    """Two images of one object each."""
    folder = tmp_path_factory.mktemp("val")
    for number in (1, 2):
        Image.new("RGB", (80, 60), (90 * number, 20, 30)).save(folder / f"{number}.jpg")
    content = {
        "images": [{"id": n, "file_name": f"{n}.jpg", "width": 80, "height": 60} for n in (1, 2)],
        "annotations": [
            {"id": n, "image_id": n, "category_id": 7, "bbox": [10, 10, 20, 20], "area": 400}
            for n in (1, 2)
        ],
        "categories": [{"id": 7, "name": "cat & dog"}],
    }
    (folder / "val.json").write_text(json.dumps(content))
    return folder


def fine_tuned(folder, name, val, ap, started=True, seed=0, found=(1,)):
    path = folder / name
    path.mkdir()
    config = {
        "output_dir": str(path),
        "seed": seed,
        "data": {"val": {"images": str(val), "annotations": str(val / "val.json")}},
        "schedule": {"iterations": 10},
    }
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    lines = [
        {"step": 5, "loss": 2.5, "loss_box": 1.5, "lr": 0.1, "images_per_second": 3.0},
        {"step": 5, "AP": ap - 1},
        {"step": 10, "loss": 1.5, "loss_box": 0.5, "lr": 0.0, "images_per_second": 3.0},
    ]
    (path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (path / "results.json").write_text(json.dumps({"AP": ap, "AP50": 2 * ap, "APl": None}))
    (path / "per_class.json").write_text(json.dumps({"cat & dog": ap}))
    loaded = ["backbone.a"] + ["neck.b"] * started
    manifest = {"source": "s", "loaded": loaded, "dropped": [], "fresh": []}
    (path / "manifest.json").write_text(json.dumps(manifest))
    boxes = [
        {"image_id": n, "category_id": 7, "bbox": [11, 10, 20, 20], "score": 0.9} for n in found
    ]
    (path / "detections.json").write_text(json.dumps(boxes))
    return path


def pre_trained(folder, healthy=True, steps=40):
    path = folder / ("healthy" if healthy else "broken")
    path.mkdir()
    (path / "config.yaml").write_text(
        yaml.safe_dump({"output_dir": str(path), "schedule": SCHEDULE})
    )
    lines = []
    for step in range(1, steps + 1):
        done = step / steps if healthy else 0.0
        lines.append(
            {
                "step": step,
                "loss": 6.0 - 3 * done,
                "loss_contrast": 4 - 2 * done,
                "loss_box": 2.0 - done,
                "contrast_minus_floor": 3.0 - 2 * done,
                "cos_positive": 0.5 + 0.4 * done if healthy else 0.0,
                "cos_negative": 0.5 - 0.5 * done if healthy else 0.0,
                "retrieval": 0.1 + 0.6 * done if healthy else 0.0,
                "instances": 60.0 if healthy else 0.0,
                "positives": 900.0 if healthy else 0.0,
                "without_boxes": 0.0,
            }
        )
    (path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return path


def test_what_a_pre_training_took_for_objects(tmp_path, val):
    """Four images of those with boxes, evenly spaced; the last is no longer there."""
    path = pre_trained(tmp_path)
    images = [{"id": n, "file_name": f"{n}.jpg", "width": 80, "height": 60} for n in (1, 2, 3, 4)]
    boxes = [[10, 10, 20, 20], [0, 0, 40, 40], [30, 30, 9, 9]]
    content = {
        "images": images,
        "annotations": [
            {"id": 10 * n + k, "image_id": n, "category_id": 1, "bbox": box, "area": 400}
            for n in (2, 1, 4)
            for k, box in enumerate(boxes)
        ],
        "categories": [{"id": 1, "name": "object"}],
    }
    (val / "proposals.json").write_text(json.dumps(content))
    config = yaml.safe_load((path / "config.yaml").read_text())
    config["data"] = {"train": {"images": str(val), "proposals": str(val / "proposals.json")}}
    config["box_domain"] = {"max_proposals": 2}
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    text, pictures = read(page([RunFiles.read(path)]))
    assert len(pictures) == 2
    assert "1.jpg, 2 boxes 2.jpg, 2 boxes" in text
    (val / "proposals.json").unlink()
    assert read(page([RunFiles.read(path)]))[1] == []


def test_two_starts_and_their_pre_training(tmp_path, val, monkeypatch):
    base = fine_tuned(tmp_path, "plain", val, 20.0, started=False, found=())
    other = fine_tuned(tmp_path, "better", val, 23.0)
    output = tmp_path / "page.html"
    options = ("--pretrain", pre_trained(tmp_path), "--output", output)
    monkeypatch.setattr(sys, "argv", ["report", *map(str, (other, base, *options))])
    main()
    text, pictures = read(output.read_text(encoding="utf-8"))
    assert "pre-trained detector: AP 23.0, 3.0 more than backbone only (20.0). One seed" in text
    assert "AP per class class backbone only pre-trained detector difference precision" in text
    assert "cat & dog 20.0 23.0 +3.0" in text
    assert "val 2 0 2 1 20 px" in text
    assert "plain backbone only 0 20.0 40.0 –" in text
    assert re.search(r"Here: from 2\.8\d to 1\.0\d", text)  # of four lines at each end
    assert "does not look well" not in text
    assert len(pictures) == 2 * 3  # labels and both runs, of both images
    assert "where the last gains most" in text
    assert "where it loses" not in text


def test_seeds_are_one_start(tmp_path, val):
    runs = []
    for seed in (1, 2, 3):
        runs.append(fine_tuned(tmp_path, f"b{seed}", val, 20.0, started=False, seed=seed))
        runs.append(fine_tuned(tmp_path, f"a{seed}", val, 22.0 + seed / 10, seed=seed))
    text, _ = read(page([RunFiles.read(run) for run in runs]))
    said = "AP 22.2, 2.2 more than backbone only (20.0). Mean of 3 pairs of runs, 95 % interval"
    assert said in text
    assert "+2.0 to +2.4: above 0" in text
    assert "What differed key backbone only" not in text or "--init" not in text


def test_the_report_of_a_broken_run_says_what_is_wrong(tmp_path):
    run = RunFiles.read(pre_trained(tmp_path, healthy=False))
    text, _ = read(page([run]))
    assert "the boxes are too small for the size at which the network sees the images" in text
    assert "0.0 instances in a batch of 2 images are too few to tell" in text
    judged = {found.title: found.looks_well for found in readings(run)}
    assert judged["positives"] is judged["retrieval"] is judged["cosines"] is False
    healthy = RunFiles.read(pre_trained(tmp_path))
    assert warnings_of(healthy) == []
    assert all(found.looks_well for found in readings(healthy))


def test_curves_of_a_handful_of_instances_do_not_look_well(tmp_path):
    """Though they have the right direction: an instance in a batch of many images is nothing."""
    path = pre_trained(tmp_path)
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    lines = [{**line, "instances": 1.2, "positives": 3.0} for line in lines]
    (path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    config = yaml.safe_load((path / "config.yaml").read_text())
    (path / "config.yaml").write_text(yaml.safe_dump({**config, "data": {"batch_size": 8}}))
    found = {reading.title: reading for reading in readings(RunFiles.read(path))}
    assert found.pop("images without a box").looks_well
    assert not any(reading.looks_well for reading in found.values())
    for title in ("contrastive loss above its floor", "cosines", "retrieval", "positives"):
        assert found[title].finding == (
            "1.2 instances in a batch of 8 images are too few to tell"
        ), title


def test_values_that_were_not_finite_are_said_and_do_not_end_the_report(tmp_path):
    """They are null in the file."""
    path = pre_trained(tmp_path)
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    lines[-2] |= {"retrieval": None, "loss_box": None}
    lines[0]["cos_negative"] = None
    (path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    run = RunFiles.read(path)
    judged = {found.title: (found.looks_well, found.finding) for found in readings(run)}
    not_finite = (False, "not finite at its start or end")
    assert judged["retrieval"] == judged["cosines"] == not_finite
    assert judged["positives"][0] is True
    assert warnings_of(run) == []
    text, _ = read(page([run]))
    assert "not finite at its start or end" in text


def test_each_file_is_read_once(tmp_path, val, monkeypatch):
    runs = [fine_tuned(tmp_path, "b", val, 20.0, started=False), fine_tuned(tmp_path, "a", val, 22)]
    opened, real = [], json_files.Path.read_bytes
    monkeypatch.setattr(
        json_files.Path, "read_bytes", lambda path: opened.append(path.name) or real(path)
    )
    page([RunFiles.read(run) for run in runs])
    assert opened.count("val.json") == 1
    assert opened.count("detections.json") == 2  # of two runs


def test_a_run_that_has_just_begun(tmp_path, val):
    path = fine_tuned(tmp_path, "begun", val, 1.0)
    for name in ("results", "per_class", "detections"):
        (path / f"{name}.json").unlink()
    (path / "metrics.jsonl").write_text("")
    text, pictures = read(page([RunFiles.read(path)]))
    assert "Without a final score so far: begun." in text
    assert pictures == []


def test_images_that_are_gone_leave_the_rest(tmp_path, val):
    path = fine_tuned(tmp_path, "run", val, 5.0)
    config = yaml.safe_load((path / "config.yaml").read_text())
    config["data"]["val"] = {"images": "gone", "annotations": "gone.json"}
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    assert load_config(path / "config.yaml").data.val.images == "gone"
    text, pictures = read(page([RunFiles.read(path)]))
    assert pictures == []
    assert "5.0" in text


def test_f1_by_hand():
    def entry(x, category=1, score=0.9):
        return {"bbox": [x, 0, 10, 10], "category_id": category, "score": score, "image_id": 1}

    truth = [entry(0), entry(100)]
    assert f1([], []) == 1.0
    assert f1(truth, []) == f1([], [entry(0)]) == 0.0
    assert f1(truth, [entry(1), entry(101)]) == 1.0
    assert f1(truth, [entry(1), entry(0)]) == 0.5  # the second finds nothing that is free
    assert f1(truth, [entry(1, category=2)]) == 0.0
    assert f1(truth, [entry(6)]) == 0.0  # IoU 0.25
    shown = by_image([entry(0, score=0.2), entry(1, score=0.4), entry(2, score=0.8)])
    assert [found["bbox"][0] for found in shown[1]] == [2, 1]


def test_the_most_telling_images_by_hand():
    first = {1: 0.0, 2: 0.5, 3: 0.9, 4: 1.0}
    last = {1: 0.9, 2: 0.5, 3: 0.1, 4: 0.8}
    assert most_telling([first, last], 1) == [
        ("where the last gains most", [1]),
        ("where it loses most", [3]),
        ("its best", [4]),
        ("its worst", [2]),
    ]
    assert most_telling([last], 2) == [("its best", [1, 4]), ("its worst", [3, 2])]


def test_masks_are_drawn_where_there_are_some():
    image = Image.new("RGB", (40, 30), "white")
    square = [[10, 10, 20, 10, 20, 20, 10, 20]]
    box = {"bbox": [10, 10, 10, 10], "category_id": 1}
    drawn = with_masks(image, [box | {"segmentation": square}, box], [0, 0])
    changed = (np.array(drawn) != np.array(image)).any(axis=2)
    assert changed[10:20, 10:20].all()
    assert changed.sum() == 100
    assert with_masks(image, [box], [0]) is image


def test_every_run_ends_with_its_report(tmp_path, write_config, script, capsys):
    """That of fine-tuning tells of the pre-training too, as long as its run is there."""
    pretrain = write_config(tmp_path / "first", loop__report=True)
    script("pretrain", "--config", pretrain)
    text, _ = read((tmp_path / "first" / "report.html").read_text(encoding="utf-8"))
    assert "Pre-training: first" in text
    finetune = write_config(tmp_path / "second", loop__report=True)
    script("finetune", "--config", finetune, "--init", tmp_path / "first" / "weights.pt")
    assert f"report: {tmp_path / 'second' / 'report.html'}" in capsys.readouterr().out
    text, pictures = read((tmp_path / "second" / "report.html").read_text(encoding="utf-8"))
    assert "Pre-training: first" in text
    assert "AP per class" in text
    assert pictures
    shutil.rmtree(tmp_path / "first")
    report_run(tmp_path / "second")
    assert "Pre-training" not in (tmp_path / "second" / "report.html").read_text(encoding="utf-8")


def test_a_report_that_cannot_be_written_is_no_error(tmp_path, val, capsys):
    path = fine_tuned(tmp_path, "run", val, 5.0)
    (path / "detections.json").write_text("{")
    report_run(path)
    assert capsys.readouterr().out.startswith("report: could not be written: ")


def test_no_run_is_one_sentence(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["report", str(tmp_path)])
    with pytest.raises(SystemExit):
        main()
    assert re.search(r"^error: .*: holds no config.yaml and metrics.jsonl", capsys.readouterr().err)
