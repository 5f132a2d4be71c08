"""The command that writes proposals, on generated images."""

from __future__ import annotations

import json
import multiprocessing
import re
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import data.propose_files
from data import proposals
from data.errors import DataError
from data.proposal_output import annotations_of
from data.proposals import main
from data.propose import ProposalSettings, propose
from data.propose_files import Bad, Found, Job, propose_files, propose_files_on_device
from tests.two_rectangles import draw


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    images = tmp_path / "images"
    (images / "sub").mkdir(parents=True)
    for i, name in enumerate(["a.png", "b.png", "sub/c.png"]):
        Image.fromarray(draw(i)).save(images / name)
    return images


def run(*arguments: str | Path | int) -> int:
    return main([str(argument) for argument in arguments])


def spoil(path: Path) -> None:
    """Damage a PNG in the middle; its end marker stays."""
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 50] = bytes(50)
    path.write_bytes(data)


def names(output: Path) -> list[str]:
    return [image["file_name"] for image in json.loads(output.read_text())["images"]]


def journal_of(output: Path) -> Path:
    return output.with_name(f".{output.name}.partial.jsonl")


def test_coco_annotations_by_hand() -> None:
    boxes = np.array([[1, 2, 4, 8], [0, 0, 2.5, 1.25]])
    common = {"image_id": 7, "category_id": 1, "iscrowd": 0}
    assert list(annotations_of(7, boxes)) == [
        {"bbox": [1, 2, 3, 6], "area": 18, "score": 1.0, **common},
        {"bbox": [0, 0, 2.5, 1.25], "area": 3.12, "score": 0.5, **common},
    ]
    assert list(annotations_of(7, np.zeros((0, 4)))) == []


def test_content_of_the_output(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "new" / "out.json"
    assert run("--images", folder, "--output", output, "--workers", 1) == 0
    content = json.loads(output.read_text())
    assert output.read_text() == json.dumps(content)  # the same form as all JSON of this project
    assert list(content) == ["images", "annotations", "categories"]
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


def save_all_kinds(images: Path) -> None:
    """Every kind of pixels, and sizes at the edge."""
    scene = Image.fromarray(draw(3))
    scene.convert("L").save(images / "grey.png")
    scene.convert("RGBA").save(images / "rgba.png")
    wide = np.array(scene.convert("L"), dtype=np.uint16) * 257
    Image.fromarray(wide).save(images / "sixteen.png")
    Image.new("RGB", (1, 1), "red").save(images / "pixel.png")
    Image.new("RGB", (70, 50), "red").save(images / "flat.png")


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


def test_a_device_gives_what_processes_give(folder: Path) -> None:
    save_all_kinds(folder)
    spoil(folder / "b.png")
    jobs = [Job(path.relative_to(folder).as_posix()) for path in sorted(folder.rglob("*.png"))]
    settings = ProposalSettings(max_boxes=9)
    expected = {outcome.file: outcome for outcome in propose_files(folder, jobs, settings)}
    device = torch.device("cpu")
    for threads, batch in ((1, 1), (3, 2), (2, 16)):
        found = list(propose_files_on_device(folder, jobs, settings, device, threads, batch))
        assert sorted(outcome.file for outcome in found) == sorted(expected)
        for outcome in found:
            same = expected[outcome.file]
            if isinstance(outcome, Bad):
                assert outcome == same
                assert outcome.file == "b.png"
                continue
            assert (outcome.state, outcome.height) == (same.state, same.height)
            assert np.array_equal(outcome.boxes, same.boxes)


def test_reading_ahead_is_bounded_and_ends_early(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []
    original = data.propose_files.read_image
    monkeypatch.setattr(
        data.propose_files, "read_image", lambda path: read.append(path) or original(path)
    )
    jobs = [Job("a.png")] * 50
    outcomes = propose_files_on_device(
        folder, jobs, ProposalSettings(), torch.device("cpu"), threads=2, batch=3
    )
    next(outcomes)
    outcomes.close()
    assert 3 <= len(read) <= 3 + 3 + 2  # a batch, and at most batch + threads ahead


def test_large_images_make_smaller_batches(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []

    def counting(images: list[torch.Tensor], settings: ProposalSettings) -> list[torch.Tensor]:
        sizes.append(len(images))
        return propose(images, settings)

    monkeypatch.setattr(data.propose_files, "propose", counting)
    jobs = [Job("a.png")] * 5
    for pixels, expected in ((10**9, [4, 1]), (2 * 60 * 80, [2, 2, 1]), (1, [1] * 5)):
        monkeypatch.setattr(data.propose_files, "MAX_PIXELS", pixels)
        sizes.clear()
        assert len(list(propose_files(folder, jobs, ProposalSettings(), batch=4))) == 5
        assert sizes == expected


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


def without_progress(stderr: str) -> list[str]:
    """Lines of stderr but those of the progress bar."""
    lines = re.split(r"[\r\n]+", stderr)
    return [line for line in lines if line.strip() and "image/s" not in line]


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("skip", [True, False])
def test_bad_images_are_named_and_left_out(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], workers: int, skip: bool
) -> None:
    clean, output = tmp_path / "clean.json", tmp_path / "results" / "out.json"
    spoil(folder / "b.png")
    (folder / "d.jpg").touch()
    (folder / "e.png").symlink_to(folder / "gone.png")
    options = ["--skip-bad"] if skip else []
    arguments = ("--images", folder, "--workers", workers, "--batch", 1)
    assert run(*arguments, "--output", output, *options) == (0 if skip else 1)
    first, *reasons = without_progress(capsys.readouterr().err)
    assert first.startswith("warning: " if skip else "error: ")
    assert "3 of 5 images can't be used" in first
    assert ("--skip-bad" in first) == (not skip)
    assert len(reasons) == 3
    for reason, words in zip(reasons, ["b.png: image is truncated", "d.jpg: image is truncated",
                                       "e.png: image is missing"], strict=True):
        assert words in reason
    assert names(output) == ["a.png", "sub/c.png"]
    assert journal_of(output).exists() == (not skip)
    assert not list(output.parent.glob("*.bad.txt"))

    for name in ("b.png", "d.jpg", "e.png"):
        (folder / name).unlink()
    assert run("--images", folder, "--workers", 1, "--output", clean) == 0
    # Ids count the images of the folder, so they differ; all else is as if the bad were not there.
    ours, theirs = (json.loads(path.read_text()) for path in (output, clean))
    assert [a["bbox"] for a in ours["annotations"]] == [a["bbox"] for a in theirs["annotations"]]


def test_a_mended_image_is_the_only_one_searched_again(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, whole = tmp_path / "out.json", tmp_path / "whole.json"
    arguments = ("--images", folder, "--workers", 1)
    assert run(*arguments, "--output", whole) == 0
    good = (folder / "b.png").read_bytes()
    spoil(folder / "b.png")
    assert run(*arguments, "--output", output) == 1
    assert names(output) == ["a.png", "sub/c.png"]
    assert "resuming" not in capsys.readouterr().err
    (folder / "b.png").write_bytes(good)
    assert run(*arguments, "--output", output) == 0
    assert "resuming: 2 of 3 images are done" in capsys.readouterr().err
    assert output.read_bytes() == whole.read_bytes()
    assert not journal_of(output).exists()


def test_many_bad_images_are_listed_in_a_file(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, listing = tmp_path / "out.json", tmp_path / "out.json.bad.txt"
    for i in range(12):
        (folder / f"empty{i:02d}.png").touch()
    assert run("--images", folder, "--output", output, "--workers", 1) == 1
    lines = without_progress(capsys.readouterr().err)
    assert "12 of 15 images" in lines[0]
    assert len(lines) == 12  # the heading, ten images, and how many more
    assert lines[-1].strip().startswith("and 2 more")
    assert str(listing) in lines[-1]
    listed = listing.read_text().splitlines()
    assert len(listed) == 12
    assert all(f"empty{i:02d}.png: image is" in line for i, line in enumerate(listed))
    assert names(output) == ["a.png", "b.png", "sub/c.png"]
    (folder / "empty11.png").unlink()
    (folder / "empty10.png").unlink()
    assert run("--images", folder, "--output", output, "--workers", 1, "--skip-bad") == 0
    assert not listing.exists()  # ten are all on the screen; an old list would mislead


def test_no_usable_image_leaves_the_output_of_an_earlier_run(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out.json"
    output.write_text("earlier")
    for path in folder.rglob("*.png"):
        spoil(path)
    arguments = ("--images", folder, "--output", output, "--workers", 1)
    assert run(*arguments, "--skip-bad") == 1
    assert without_progress(capsys.readouterr().err)[-1] == (
        f"error: {folder}: none of the 3 images can be used"
    )
    assert output.read_text() == "earlier"
    assert not journal_of(output).exists()  # there is nothing in it


def test_wrong_size_in_annotations_is_a_bad_image(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, output = tmp_path / "list.json", tmp_path / "out.json"
    images = [
        {"id": 1, "file_name": "a.png", "width": 60, "height": 80},
        {"id": 2, "file_name": "b.png", "width": 80, "height": 60},
    ]
    source.write_text(json.dumps({"images": images, "annotations": [], "categories": []}))
    arguments = ("--images", folder, "--output", output, "--workers", 1)
    assert run(*arguments, "--annotations", source) == 1
    assert "a.png: image has 80 x 60 pixels but is listed as 60 x 80" in capsys.readouterr().err
    assert names(output) == ["b.png"]
    # Also when the image comes from the journal, where the annotations had another size for it.
    images[0].update(width=80, height=60)
    images[1].update(width=60, height=80)
    source.write_text(json.dumps({"images": images, "annotations": [], "categories": []}))
    assert run(*arguments, "--annotations", source) == 1
    stderr = capsys.readouterr().err
    assert "resuming" not in stderr
    assert "b.png: image has 80 x 60 pixels but is listed as 60 x 80" in stderr
    assert names(output) == ["a.png"]


@pytest.mark.parametrize(
    ("options", "status", "words"),
    [
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

    def on_cpu_instead(directory, jobs, settings, device, threads, batch):
        asked.append(device)
        return on_device(directory, jobs, settings, torch.device("cpu"), threads, batch)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(proposals, "propose_files_on_device", on_cpu_instead)
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
    """As the kernel does when memory runs out; the run must not wait for the process for ever."""
    output, add = tmp_path / "out.json", proposals.Journal.add
    for i in range(8):
        Image.fromarray(draw(10 + i)).save(folder / f"{i}.png")

    def add_and_kill(journal: proposals.Journal, found: Found) -> None:
        add(journal, found)
        for process in multiprocessing.active_children():
            process.kill()

    monkeypatch.setattr(proposals.Journal, "add", add_and_kill)
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
    output, add = tmp_path / "out.json", proposals.Journal.add

    def add_and_interrupt(journal: proposals.Journal, found: Found) -> None:
        add(journal, found)
        raise KeyboardInterrupt

    monkeypatch.setattr(proposals.Journal, "add", add_and_interrupt)
    arguments = ("--images", folder, "--output", output, "--workers", 1)
    assert run(*arguments) == 130
    assert without_progress(capsys.readouterr().err)[-1].startswith("stopped; the same command")
    monkeypatch.undo()
    assert run(*arguments) == 0
    assert "resuming: 1 of 3 images are done" in capsys.readouterr().err
