"""The command that says what a detector gets wrong, its pictures, and its section of the report."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from PIL import Image

from aligndet.detection_errors import detection_errors
from aligndet.error_pictures import COLOURS, error_sheet, worst
from aligndet.errors import main
from aligndet.report_errors import errors_section
from aligndet.report_pictures import Validation
from data.coco_json import load_coco

CAT, DOG = 5, 9
HERE, AWAY = [10, 10, 20, 20], [60, 30, 20, 20]


@pytest.fixture
def val(tmp_path):
    """Four grey images of 100 x 60 px, of which three hold a cat; the last file is gone."""
    for number in (1, 2, 3):
        Image.new("RGB", (100, 60), (90, 90, 90)).save(tmp_path / f"{number}.png")
    content = {
        "images": [
            {"id": n, "file_name": f"{n}.png", "width": 100, "height": 60} for n in (1, 2, 3, 4)
        ],
        "annotations": [
            {"id": n, "image_id": n, "category_id": CAT, "bbox": HERE, "area": 400}
            for n in (1, 2, 3)
        ],
        "categories": [{"id": CAT, "name": "cat"}, {"id": DOG, "name": "dog & co"}],
    }
    (tmp_path / "val.json").write_text(json.dumps(content))
    return tmp_path


def result(image, category, box, score):
    return {"image_id": image, "category_id": category, "bbox": box, "score": score}


FOUND = [
    result(1, CAT, HERE, 0.9),
    result(2, DOG, HERE, 0.8),
    result(2, CAT, AWAY, 0.7),
    result(4, CAT, AWAY, 0.2),  # too unsure to be shown
]


def run_main(monkeypatch, *options):
    monkeypatch.setattr(sys, "argv", ["errors", *map(str, options)])
    main()


def test_the_command(val, monkeypatch, capsys):
    (val / "found.json").write_text(json.dumps(FOUND))
    files = ("--annotations", val / "val.json", "--detections", val / "found.json")
    run_main(monkeypatch, *files, "--output", val / "sheet.png")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "AP at IoU 0.5: 33.7"  # 34 of 101 recalls
    assert "class                     1     32.7" in lines  # 67 instead of 34
    assert "missed                    1     16.8" in lines  # 51 instead of 34
    assert "  cat as dog & co: 1, mean score 0.80" in lines
    assert lines[-1] == f"pictures: {val / 'sheet.png'}"
    assert Image.open(val / "sheet.png").width > 800  # two pictures side by side


def test_bad_input_is_one_sentence(val, monkeypatch, capsys):
    for options in ([], [val, "--detections", "found.json"], ["--annotations", "val.json"]):
        with pytest.raises(SystemExit):
            run_main(monkeypatch, *options)
        assert "give the directory of a run, or --annotations" in capsys.readouterr().err
    (val / "config.yaml").write_text("output_dir: x\n")
    (val / "metrics.jsonl").write_text("")
    with pytest.raises(SystemExit):
        run_main(monkeypatch, val)
    said = capsys.readouterr().err
    assert "has no detections.json, which finetune.py writes at its end" in said
    assert f"--detections {val}/evaluation_detections.json" in said  # what --eval-only writes there


def test_the_images_with_the_most_to_correct_and_their_colours(val):
    content = load_coco(val / "val.json")
    errors = detection_errors(content, FOUND)
    assert worst(errors, 9) == [2, 3]  # three corrections, then one; nothing is shown in the last
    assert worst(errors, 1) == [2]
    data = Validation.of(content, val)
    picture = np.asarray(error_sheet(data, errors, [2]))
    for kind, is_there in (("class", True), ("background", True), ("right", False)):
        found = (picture == COLOURS[kind]).all(axis=2)
        if kind == "right":  # as white as the margins: not inside the picture
            found = found[30:250, :390]
        assert found.any() == is_there, kind
    assert error_sheet(data, errors, [4]) is None  # its file is gone


def test_the_section_of_a_report(val):
    content = load_coco(val / "val.json")
    section = errors_section(content, {"first <b>": FOUND[:1], "second": FOUND})
    assert "<th>first &lt;b&gt;</th>" in section
    assert "32.7 (1)" in section
    assert "<td>cat</td><td>dog &amp; co</td><td>1</td><td>0.80</td>" in section
    assert errors_section(content, {}) == ""
    assert errors_section(content | {"annotations": []}, {"none": FOUND}) == ""
