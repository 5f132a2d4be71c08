"""Filter, NMS and recall by hand; the command line on generated images."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.ops import box_iou

from data.errors import DataError
from data.proposals import (
    BoxFilter,
    ProposalSettings,
    filter_boxes,
    main,
    measure_recall,
    parse_filter,
    propose,
    suppress_overlaps,
    to_coco,
)


def draw(seed: int, height: int = 60, width: int = 80) -> np.ndarray:
    """A uint8 scene with two rectangles, at (10, 8)-(40, 40) and (50, 20)-(74, 52)."""
    image = np.full((height, width, 3), 100.0)
    image[8:40, 10:40] = (230, 50, 40)
    image[20:52, 50:74] = (40, 60, 220)
    image += np.random.default_rng(seed).normal(0, 4, image.shape)
    return image.clip(0, 255).astype(np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    images = tmp_path / "images"
    (images / "sub").mkdir(parents=True)
    for i, name in enumerate(["a.png", "b.png", "sub/c.png"]):
        Image.fromarray(draw(i)).save(images / name)
    return images


def run(*arguments: str | Path) -> int:
    return main([str(argument) for argument in arguments])


# ------------------------------------------------------------------------------------------ filter


def test_filter_names() -> None:
    assert parse_filter("ratio3size0008") == BoxFilter(3.0, 0.0, 0.8, 32.0) == BoxFilter()
    assert parse_filter("ratio2.5size0110", min_side=5) == BoxFilter(2.5, 0.1, 1.0, 5)
    assert parse_filter("none") is None


@pytest.mark.parametrize("text", ["", "ratio3", "ratio0size0008", "ratio3size0800", "ratio3size8"])
def test_bad_filter_names_the_option_and_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="--filter.*ratio3size0008"):
        parse_filter(text)


def test_filter_by_hand_at_coco_scale() -> None:
    boxes = torch.tensor(
        [
            [0.0, 0, 32, 32],  # just large enough
            [0, 0, 31, 40],  # too narrow
            [0, 0, 40, 31],  # too flat
            [0, 0, 120, 40],  # exactly 3 : 1
            [0, 0, 121, 40],  # wider than 3 : 1
            [0, 0, 40, 121],  # higher than 3 : 1
            [0, 0, 512, 384],  # exactly 0.8 of both sides
            [0, 0, 520, 390],  # larger
        ]
    )
    kept = filter_boxes(boxes, 480, 640, BoxFilter())
    assert kept.tolist() == boxes[[0, 3, 6]].tolist()


def test_least_side_follows_the_size_of_the_image() -> None:
    boxes = torch.tensor([[0.0, 0, 16, 16], [0, 0, 15, 15]])
    assert len(filter_boxes(boxes, 240, 320, BoxFilter())) == 1  # 32 * 320 / 640 = 16
    assert len(filter_boxes(boxes, 640, 640, BoxFilter())) == 0
    assert len(filter_boxes(boxes, 240, 320, BoxFilter(min_side=0))) == 2


def test_least_extent() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 9, 9]])
    kept = filter_boxes(boxes, 100, 100, BoxFilter(min_extent=0.1, min_side=0))
    assert kept.tolist() == [[0, 0, 10, 10]]


# --------------------------------------------------------------------------------------------- NMS


def test_nms_by_hand() -> None:
    boxes = torch.tensor(
        [
            [0.0, 0, 10, 10],
            [0, 0, 10, 6],  # IoU 0.6 with the first
            [0, 0, 10, 4],  # IoU 0.4 with the first; 0.67 with the second, which is gone
            [20, 20, 30, 30],
            [0, 0, 10, 5],  # IoU 0.5 with the first: not more; 0.8 with the third
        ]
    )
    assert suppress_overlaps(boxes, 0.5).tolist() == boxes[[0, 2, 3]].tolist()
    assert suppress_overlaps(boxes, 1.0).tolist() == boxes.tolist()
    assert suppress_overlaps(boxes[:0], 0.5).shape == (0, 4)


# ----------------------------------------------------------------------------------------- propose


def test_propose_finds_objects_and_obeys_its_settings() -> None:
    image = torch.from_numpy(draw(0)).permute(2, 0, 1)
    boxes = propose(image)
    truth = torch.tensor([[10.0, 8, 40, 40], [50, 20, 74, 52]])
    assert box_iou(truth, boxes).amax(dim=1).min() > 0.8
    overlaps = box_iou(boxes, boxes).fill_diagonal_(0)
    assert overlaps.max() <= 0.5
    assert len(filter_boxes(boxes, 60, 80, BoxFilter())) == len(boxes)
    assert propose(image, ProposalSettings(max_boxes=1)).tolist() == boxes[:1].tolist()
    everything = propose(image, ProposalSettings(box_filter=None, nms_iou=1))
    assert len(everything) > len(boxes)


def test_large_images_are_searched_small_and_boxes_scaled_back() -> None:
    image = torch.from_numpy(draw(0).repeat(3, axis=0).repeat(3, axis=1)).permute(2, 0, 1)
    truth = torch.tensor([[30.0, 24, 120, 120], [150, 60, 222, 156]])
    for scene in (image, image.float() / 255):
        boxes = propose(scene, ProposalSettings(search_side=80, nms_iou=1))
        assert box_iou(truth, boxes).amax(dim=1).min() > 0.8
    whole = propose(image, ProposalSettings(box_filter=None, search_side=77, nms_iou=1))
    assert (whole == torch.tensor([0.0, 0, 240, 180])).all(dim=1).any()


def test_one_pixel_image() -> None:
    image = torch.zeros(3, 1, 1, dtype=torch.uint8)
    assert propose(image).shape == (0, 4)  # the one box is larger than 0.8 of the image
    assert propose(image, ProposalSettings(box_filter=None)).tolist() == [[0, 0, 1, 1]]


# ------------------------------------------------------------------------------------------ recall


def test_recall_by_hand() -> None:
    objects = [
        torch.tensor([[0.0, 0, 100, 10], [200, 0, 210, 10]]),  # 1000 px and 100 px: both small
        torch.tensor([[0.0, 0, 40, 40]]),  # large
        torch.zeros(0, 4),
    ]
    proposals = [
        torch.tensor([[0.0, 0, 50, 10], [0, 0, 10, 10]]),  # IoU 0.5 with the first object
        torch.zeros(0, 4),
        torch.tensor([[0.0, 0, 5, 5]]),
    ]
    report = measure_recall(proposals, objects)
    assert report["objects"] == 3 and report["large_objects"] == 1
    assert report["recall"] == pytest.approx(1 / 3)
    assert report["mean_best_iou"] == pytest.approx(0.5 / 3)
    assert report["large_recall"] == report["large_mean_best_iou"] == 0
    assert report["boxes_per_image"] == pytest.approx(1.0)


# ------------------------------------------------------------------------------------ command line


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
        expected = propose(torch.from_numpy(
            np.array(Image.open(folder / image["file_name"]))).permute(2, 0, 1))
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
