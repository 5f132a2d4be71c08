"""The command that writes proposals, on generated images."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data.errors import DataError
from data.proposals import command
from data.proposals.propose import propose
from data.proposals.workers import Found, propose_files_on_device
from tests.helpers.proposal_command import (
    journal_of,
    names,
    run,
    save_all_kinds,
    spoil,
    three_images,
    without_progress,
)
from tests.helpers.two_rectangles import draw


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return three_images(tmp_path / "images")


def test_content_of_the_output(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "new" / "out.json"
    assert run("--images", folder, "--output", output, "--workers", 1) == 0
    content = json.loads(output.read_text())
    assert output.read_text() == json.dumps(content)  # the same form as all JSON of this project
    assert list(content) == ["info", "images", "annotations", "categories", "checksum"]
    assert content["info"]["images_read_with"] == {"exif": "stored", "value_range": None}
    assert content["categories"] == [{"id": 1, "name": "object"}]
    assert names(output) == ["a.png", "b.png", "sub/c.png"]
    assert content["images"][0] == {"id": 1, "file_name": "a.png", "width": 80, "height": 60}
    ids = [annotation["id"] for annotation in content["annotations"]]
    assert ids == list(range(1, len(ids) + 1))
    for image in content["images"]:
        own = [a for a in content["annotations"] if a["image_id"] == image["id"]]
        scores = [a["score"] for a in own]
        assert scores == sorted(scores, reverse=True)
        assert scores[0] == 1
        assert scores[-1] > 0
        pixels = torch.from_numpy(np.array(Image.open(folder / image["file_name"])))
        expected = propose([pixels.permute(2, 0, 1)])[0]
        assert [a["bbox"][:2] for a in own] == expected[:, :2].tolist()
    assert list(output.parent.iterdir()) == [output]  # no journal, nothing temporary


@pytest.mark.parametrize(("workers", "batch"), [(1, 1), (1, 5), (2, 2), (3, 1), (3, 5)])
def test_processes_and_batches_do_not_change_the_file(
    folder: Path, tmp_path: Path, workers: int, batch: int
) -> None:
    save_all_kinds(folder)
    one, other = tmp_path / "one.json", tmp_path / "other.json"
    assert run("--images", folder, "--output", one, "--workers", 1, "--batch", 2) == 0
    assert len(names(one)) == 8
    assert run("--images", folder, "--output", other, "--workers", workers, "--batch", batch) == 0
    assert one.read_bytes() == other.read_bytes()


def test_every_kind_of_image(folder: Path, tmp_path: Path) -> None:
    save_all_kinds(folder)
    output = tmp_path / "out.json"
    assert run("--images", folder, "--output", output, "--workers", 1) == 0
    content = json.loads(output.read_text())
    boxes: dict[str, list[list[float]]] = {}
    for image in content["images"]:
        own = [a["bbox"] for a in content["annotations"] if a["image_id"] == image["id"]]
        boxes[image["file_name"]] = own
        with Image.open(folder / image["file_name"]) as picture:
            assert picture.size == (image["width"], image["height"])
    assert boxes["pixel.png"] == boxes["flat.png"] == []  # one box, larger than 0.8 of the image
    assert boxes["sixteen.png"] == boxes["grey.png"]  # 257 v of 65535 is v of 255
    assert len(boxes["grey.png"]) > 0
    assert len(boxes["rgba.png"]) > 0


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
    assert f"{len(content['annotations'])}.0 boxes per image, 1 image" in printed


def listed_upright(folder: Path, path: Path) -> Path:
    """Lay b.png on its side and list the folder's images as viewers show them."""
    exif = Image.Exif()
    exif[0x0112] = 8
    with Image.open(folder / "b.png") as image:
        image.rotate(-90, expand=True).save(folder / "b.png", exif=exif)  # shown as it was
    entries = [{"id": i, "file_name": name, "width": 80, "height": 60}
               for i, name in enumerate(["a.png", "b.png", "sub/c.png"])]
    path.write_text(json.dumps({"images": entries, "annotations": [], "categories": []}))
    return path


@pytest.mark.parametrize("without", [{"a.png"}, {"a.png", "b.png", "sub/c.png"}])
def test_a_list_of_images_needs_no_sizes(folder: Path, tmp_path: Path, without: set[str]) -> None:
    files = ["a.png", "b.png", "sub/c.png"]
    images = [{"id": number, "file_name": file} for number, file in enumerate(files)]
    for entry in images:
        if entry["file_name"] not in without:
            width, height = Image.open(folder / entry["file_name"]).size
            entry.update(width=width, height=height)
    (tmp_path / "list.json").write_text(json.dumps({"images": images}))
    output, annotations = tmp_path / "out.json", tmp_path / "list.json"
    assert run("--images", folder, "--output", output, "--annotations", annotations) == 0
    for entry in json.loads(output.read_text())["images"]:
        size = Image.open(folder / entry["file_name"]).size
        assert (entry["width"], entry["height"]) == size


def test_turned_photographs_are_named_before_the_search(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, listing = tmp_path / "out.json", listed_upright(folder, tmp_path / "list.json")
    arguments = ("--images", folder, "--annotations", listing, "--output", output, "--workers", 1)
    expected = tmp_path / "expected.json"
    assert run("--images", folder, "--output", expected, "--workers", 1, "--exif", "apply") == 0
    capsys.readouterr()
    assert run(*arguments) == 1
    (line,) = without_progress(capsys.readouterr().err)
    assert "b.png: has 60 x 80 pixels" in line
    assert "the EXIF orientation explains it" in line
    assert "--exif apply" in line
    assert not output.exists()
    assert not journal_of(output).exists()
    assert run(*arguments, "--exif", "apply") == 0
    ours, theirs = json.loads(output.read_text()), json.loads(expected.read_text())
    assert ours["info"]["images_read_with"] == {"exif": "apply", "value_range": None}
    assert [a["bbox"] for a in ours["annotations"]] == [a["bbox"] for a in theirs["annotations"]]
    assert [(i["width"], i["height"]) for i in ours["images"]] == [(80, 60)] * 3


def test_a_journal_goes_with_one_way_to_read_images(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(folder / "a.png")  # keeps the journal
    arguments = ("--images", folder, "--output", tmp_path / "out.json", "--workers", 1)
    for options, words in (([], None), ([], "resuming: 2 of 3"), (["--exif", "apply"], "other set"),
                           (["--exif", "apply"], "resuming"), (["--value-range", 0, 9], "other")):
        assert run(*arguments, *options) == 1
        lines = without_progress(capsys.readouterr().err)
        assert (words in lines[0]) if words else ("images can't be used" in lines[0])


def test_pictures_that_would_be_black_are_named_before_the_search(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.png", "b.png", "sub/c.png"):
        with Image.open(folder / name) as image:
            grey = np.array(image.convert("L"), dtype=np.float64)
        twelve_bits = 4095 * (grey - grey.min()) / (grey.max() - grey.min())
        Image.fromarray(twelve_bits.round().astype(np.uint16)).save(folder / name)
    output, pictures = tmp_path / "out.json", tmp_path / "pictures"
    arguments = ("--images", folder, "--output", output, "--workers", 1)
    assert run(*arguments) == 1
    (line,) = without_progress(capsys.readouterr().err)
    assert "nearly black" in line
    assert "--value-range 0 4095" in line
    assert not output.exists()
    assert run(*arguments, "--value-range", 0, 4095, "--draw", pictures) == 0
    assert len(json.loads(output.read_text())["annotations"]) > 0
    with Image.open(pictures / "a.png.jpg") as picture:
        assert np.array(picture.convert("L")).max() > 150


def test_files_that_are_no_images_are_counted(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.txt", "b.txt", ".hidden.png"):
        (folder / name).touch()
    assert run("--images", folder, "--output", tmp_path / "out.json", "--workers", 1) == 0
    assert without_progress(capsys.readouterr().err) == ["left out: 2 .txt, 1 hidden"]


@pytest.mark.parametrize(
    ("options", "status", "words"),
    [
        (["--value-range", "9", "1"], 2, "value_range is [9.0, 1.0]; it must be two numbers"),
        (["--max-pixels", "0"], 2, "max_pixels is 0; it must be at least 1"),
        (["--value-range", "0", "nan"], 2, "value_range is [0.0, nan]"),
        (["--filter", "square"], 2, "ratio3size0008"),
        (["--workers", "0"], 2, "--workers"),
        (["--batch", "0"], 2, "--batch"),
        (["--nms", "nan"], 2, "--nms"),
        (["--max-boxes", "0"], 2, "--max-boxes"),
        (["--source", "gt"], 2, "--annotations"),
        (["--source", "absent.json"], 2, "--annotations"),
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
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert words in lines[0]
    assert not output.exists()
    assert not journal_of(output).exists()


def test_cuda_that_is_not_there(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    status = run("--images", folder, "--output", tmp_path / "out.json", "--device", "cuda")
    assert status == 2
    assert capsys.readouterr().err == (
        "error: --device cuda: PyTorch finds no GPU; use --device cpu\n"
    )


def test_the_device_option_reaches_the_search(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[torch.device] = []
    on_device: Callable = propose_files_on_device

    def on_cpu_instead(directory, jobs, settings, device, *how):
        asked.append(device)
        return on_device(directory, jobs, settings, torch.device("cpu"), *how)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(command, "propose_files_on_device", on_cpu_instead)
    one, other = tmp_path / "one.json", tmp_path / "other.json"
    assert run("--images", folder, "--output", one, "--workers", 1) == 0
    assert run("--images", folder, "--output", other, "--workers", 2, "--device", "cuda") == 0
    assert asked == [torch.device("cuda")]
    assert one.read_bytes() == other.read_bytes()


def test_recall_of_other_images_is_an_error_before_the_search(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truth = tmp_path / "truth.json"
    entry = {"id": 1, "file_name": "elsewhere.png", "width": 8, "height": 8}
    truth.write_text(json.dumps({"images": [entry], "annotations": [], "categories": []}))
    assert run("--images", folder, "--output", tmp_path / "out.json", "--recall", truth,
               "--workers", 1) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not (tmp_path / "out.json").exists()


def test_output_that_is_a_folder(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--images", folder, "--output", tmp_path, "--workers", 1) == 1
    assert "is a directory; give --output the name of a file" in capsys.readouterr().err


def test_missing_folder_is_a_data_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--images", tmp_path / "absent", "--output", tmp_path / "out.json") == 1
    assert "absent" in capsys.readouterr().err
    assert issubclass(DataError, ValueError)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_killed_process_ends_the_run_with_one_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The kernel kills when memory runs out; the run must not wait for the process for ever."""
    output, add = tmp_path / "out.json", command.Journal.add
    for i in range(8):
        Image.fromarray(draw(10 + i)).save(folder / f"{i}.png")

    def add_and_kill(journal: command.Journal, found: Found) -> None:
        add(journal, found)
        for process in multiprocessing.active_children():
            process.kill()

    monkeypatch.setattr(command.Journal, "add", add_and_kill)
    arguments = ("--images", folder, "--output", output)
    assert run(*arguments, "--workers", 2, "--batch", 1) == 1
    message = without_progress(capsys.readouterr().err)[-1]
    assert message.startswith("error: a process of --workers was killed")
    assert not output.exists()
    monkeypatch.undo()
    assert run(*arguments, "--workers", 1) == 0
    assert re.search(r"resuming: \d+ of 11 images are done", capsys.readouterr().err)
    assert len(names(output)) == 11


def test_ctrl_c_keeps_what_is_finished(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    output, add = tmp_path / "out.json", command.Journal.add

    def add_and_interrupt(journal: command.Journal, found: Found) -> None:
        add(journal, found)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(command.Journal, "add", add_and_interrupt)
    arguments = ("--images", folder, "--output", output, "--workers", 1)
    assert run(*arguments) == 130
    assert without_progress(capsys.readouterr().err)[-1].startswith("stopped by Ctrl-C; the same")
    monkeypatch.undo()
    assert run(*arguments) == 0
    assert "resuming: 1 of 3 images are done" in capsys.readouterr().err
