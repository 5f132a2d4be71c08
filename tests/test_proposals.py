"""The command that writes proposals, on generated images."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data.errors import DataError
from data.proposals import main, to_coco
from data.propose import propose
from tests.two_rectangles import draw


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    images = tmp_path / "images"
    (images / "sub").mkdir(parents=True)
    for i, name in enumerate(["a.png", "b.png", "sub/c.png"]):
        Image.fromarray(draw(i)).save(images / name)
    return images


def run(*arguments: str | Path) -> int:
    return main([str(argument) for argument in arguments])


def test_coco_entries_by_hand() -> None:
    images = [{"id": 7, "file_name": "a.png", "width": 9, "height": 9}, {"id": 9}]
    boxes = [np.array([[1, 2, 4, 8], [0, 0, 2.004, 1]], dtype=np.float32), np.zeros((0, 4))]
    content = to_coco(images, boxes)
    assert content["categories"] == [{"id": 1, "name": "object"}]
    assert content["images"] == images
    common = {"image_id": 7, "category_id": 1, "iscrowd": 0}
    assert content["annotations"] == [
        {"id": 1, "bbox": [1, 2, 3, 6], "area": 18, "score": 1.0, **common},
        {"id": 2, "bbox": [0, 0, 2, 1], "area": 2, "score": 0.5, **common},
    ]


def test_any_number_of_processes_writes_the_same_file(folder: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one.json", tmp_path / "new" / "two.json"
    assert run("--images", folder, "--output", one, "--workers", 1) == 0
    assert run("--images", folder, "--output", two, "--workers", 2) == 0
    assert one.read_bytes() == two.read_bytes()
    content = json.loads(one.read_text())
    assert [image["file_name"] for image in content["images"]] == ["a.png", "b.png", "sub/c.png"]
    assert content["images"][0] == {"id": 1, "file_name": "a.png", "width": 80, "height": 60}
    for image in content["images"]:
        own = [a for a in content["annotations"] if a["image_id"] == image["id"]]
        scores = [a["score"] for a in own]
        assert scores == sorted(scores, reverse=True) and scores[0] == 1 and scores[-1] > 0
        pixels = torch.from_numpy(np.array(Image.open(folder / image["file_name"])))
        expected = propose([pixels.permute(2, 0, 1)])[0]
        assert [a["bbox"][:2] for a in own] == expected[:, :2].tolist()


def test_annotations_choose_the_images_and_recall_is_printed(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = {"id": 42, "file_name": "sub/c.png", "width": 80, "height": 60, "source": "drawn"}
    truth = [[10, 8, 30, 32], [50, 20, 24, 32], [0, 0, 1, 1]]
    annotations = [
        {"id": i, "image_id": 42, "category_id": 5, "bbox": bbox, "iscrowd": int(i == 2)}
        for i, bbox in enumerate(truth)
    ]
    source, output = tmp_path / "truth.json", tmp_path / "out.json"
    source.write_text(json.dumps({
        "images": [listed], "annotations": annotations, "categories": [{"id": 5, "name": "x"}]
    }))
    status = run("--images", folder, "--output", output, "--annotations", source,
                 "--recall", source, "--workers", 1, "--max-boxes", 20)
    assert status == 0
    content = json.loads(output.read_text())
    assert content["images"] == [listed]
    assert {a["image_id"] for a in content["annotations"]} == {42}
    printed = capsys.readouterr().out
    assert "2 objects: recall at IoU 0.5 100.0 %" in printed  # the crowd is left out
    assert f"{len(content['annotations'])}.0 boxes per image, 1 images" in printed


def spoil(path: Path) -> None:
    """Damage a PNG in the middle; its end marker stays."""
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 50] = bytes(50)
    path.write_bytes(data)


@pytest.mark.parametrize("workers", [1, 2])
def test_failing_image_is_named_and_leaves_no_output(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], workers: int
) -> None:
    spoil(folder / "b.png")
    output = tmp_path / "results" / "out.json"
    assert run("--images", folder, "--output", output, "--workers", workers) == 1
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("error: ") and "b.png" in message
    assert not output.exists() and not list(tmp_path.rglob("*.tmp"))


def test_failure_keeps_the_file_of_an_earlier_run(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.json"
    output.write_text("earlier")
    spoil(folder / "sub" / "c.png")
    assert run("--images", folder, "--output", output, "--workers", 1) == 1
    assert output.read_text() == "earlier"


def test_wrong_size_in_annotations_is_an_error(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "list.json"
    listed = {"id": 1, "file_name": "a.png", "width": 60, "height": 80}
    source.write_text(json.dumps({"images": [listed], "annotations": [], "categories": []}))
    status = run("--images", folder, "--output", tmp_path / "out.json", "--annotations", source,
                 "--workers", 1)
    assert status == 1
    assert "80 x 60 pixels but is listed as 60 x 80" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "status", "words"),
    [
        (["--filter", "square"], 2, "ratio3size0008"),
        (["--workers", "0"], 2, "--workers"),
        (["--nms", "nan"], 2, "--nms"),
        (["--max-boxes", "0"], 2, "--max-boxes"),
        (["--recall", "absent.json"], 1, "absent.json"),
        (["--annotations", "absent.json"], 1, "absent.json"),
    ],
)
def test_bad_options_end_with_one_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    options: list[str], status: int, words: str,
) -> None:
    output = tmp_path / "out.json"
    assert run("--images", folder, "--output", output, *options) == status
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and words in lines[0]
    assert not output.exists()


def test_recall_of_other_images_is_an_error(folder: Path, tmp_path: Path) -> None:
    truth = tmp_path / "truth.json"
    entry = {"id": 1, "file_name": "elsewhere.png", "width": 8, "height": 8}
    truth.write_text(json.dumps({"images": [entry], "annotations": [], "categories": []}))
    assert run("--images", folder, "--output", tmp_path / "out.json", "--recall", truth,
               "--workers", 1) == 1


def test_missing_folder_is_a_data_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--images", tmp_path / "absent", "--output", tmp_path / "out.json") == 1
    assert "absent" in capsys.readouterr().err
    assert issubclass(DataError, ValueError)
