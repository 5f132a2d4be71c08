"""What the command leaves: COCO annotations, and a list of images that cannot be used."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from data import coco_file
from data.coco import CocoDataset
from data.coco_file import open_coco
from data.digest import digest_of
from data.packed_file import is_packed
from data.proposals.output import annotations_of, objects, xywh_of
from tests.helpers.proposal_command import (
    journal_of,
    names,
    run,
    spoil,
    three_images,
    without_progress,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return three_images(tmp_path / "images")


def test_coco_annotations_by_hand() -> None:
    boxes = xywh_of(np.array([[1, 2, 4, 8], [0, 0, 2.5, 1.25]]))
    common = {"image_id": 7, "category_id": 1, "iscrowd": 0}
    assert list(annotations_of(7, objects(boxes))) == [
        {"bbox": [1, 2, 3, 6], "area": 18, "score": 1.0, **common},
        {"bbox": [0, 0, 2.5, 1.25], "area": 3.12, "score": 0.5, **common},
    ]
    assert list(annotations_of(7, objects(np.zeros((0, 4))))) == []


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
    for reason, words in zip(
        reasons,
        ["b.png: image is truncated", "d.jpg: image is truncated", "e.png: image is missing"],
        strict=True,
    ):
        assert words in reason
    assert names(output) == ["a.png", "sub/c.png"]
    assert journal_of(output).exists() == (not skip)
    assert not list(output.parent.glob("*.bad.txt"))

    for name in ("b.png", "d.jpg", "e.png"):
        (folder / name).unlink()
    assert run("--images", folder, "--workers", 1, "--output", clean) == 0
    # Ids count the images of the folder, so they differ; all else is as without the bad images.
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
    # Also when the image comes from the journal, written when the annotations had another size.
    images[0].update(width=80, height=60)
    images[1].update(width=60, height=80)
    source.write_text(json.dumps({"images": images, "annotations": [], "categories": []}))
    assert run(*arguments, "--annotations", source) == 1
    stderr = capsys.readouterr().err
    assert "resuming" not in stderr
    assert "b.png: image has 80 x 60 pixels but is listed as 60 x 80" in stderr
    assert names(output) == ["a.png"]


@pytest.mark.parametrize("large", [False, True])
def test_json_and_packed_say_the_same(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, large: bool
) -> None:
    if large:
        monkeypatch.setattr(coco_file, "LARGE_FILE", 100)
    command = ("--images", folder, "--workers", 1)
    assert run(*command, "--output", tmp_path / "a.json") == 0
    assert run(*command, "--output", tmp_path / "a.packed", "--format", "packed") == 0
    monkeypatch.setattr(coco_file, "pack_coco", None if large else coco_file.pack_coco)
    first, second = (open_coco(tmp_path / name).as_dict() for name in ("a.json", "a.packed"))
    assert first == second
    assert (tmp_path / "a.json.packed").exists() == large
    datasets = [CocoDataset(folder, tmp_path / name) for name in ("a.json", "a.packed")]
    assert digest_of(datasets[0]) == digest_of(datasets[1])


def test_a_packed_output_is_known_again(folder: Path, tmp_path: Path, monkeypatch) -> None:
    command = ("--images", folder, "--workers", 1, "--format", "packed")
    assert run(*command, "--output", tmp_path / "a.packed") == 0
    before = (tmp_path / "a.packed").read_bytes()
    monkeypatch.setattr("data.proposals.command.propose_files", None)  # nothing is searched
    assert run(*command, "--output", tmp_path / "a.packed") == 0
    assert (tmp_path / "a.packed").read_bytes() == before


def test_a_file_of_the_other_format_is_written_anew(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "a"
    command = ("--images", folder, "--workers", 1, "--output", output)
    for form in ("json", "packed", "json"):
        assert run(*command, "--format", form) == 0
        assert is_packed(output) == (form == "packed")
