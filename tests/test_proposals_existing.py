"""A file of proposals that is there already: looked at without a search, if it fits."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.proposals import command
from data.proposals.existing import RECORD, record, take_existing
from data.proposals.journal import Journal
from data.proposals.sources import list_work
from tests.helpers.proposal_command import journal_of, run, three_images
from tests.helpers.two_rectangles import draw


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return three_images(tmp_path / "images")


@pytest.fixture
def output(folder: Path, tmp_path: Path) -> Path:
    """What an earlier run wrote."""
    assert run("--images", folder, "--output", tmp_path / "out.json", "--workers", 1) == 0
    return tmp_path / "out.json"


@pytest.fixture
def searched(output: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Files that are worked on from now on."""
    files: list[str] = []
    original = command.propose_files

    def note(directory, jobs, *rest):
        files.extend(job.file for job in jobs)
        return original(directory, jobs, *rest)

    monkeypatch.setattr(command, "propose_files", note)
    return files


def again(folder: Path, output: Path, *options: str | Path | int) -> int:
    return run("--images", folder, "--output", output, "--workers", 1, *options)


def labels(path: Path) -> Path:
    """Objects of a.png, one of them in two."""
    boxes = [[10, 8, 30, 32], [50, 20, 24, 32]]
    path.write_text(json.dumps({
        "images": [{"id": 7, "file_name": "a.png", "width": 80, "height": 60}],
        "annotations": [{"id": i, "image_id": 7, "category_id": 5, "bbox": b}
                        for i, b in enumerate(boxes)],
        "categories": [{"id": 5, "name": "x"}],
    }))  # fmt: skip
    return path


def pictures(directory: Path) -> dict[str, bytes]:
    """Content of the pictures by name."""
    files = directory.rglob("*.jpg")
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in files}


def test_recall_and_pictures_need_no_search(
    folder: Path, output: Path, searched: list[str], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """They are what a run that searches shows."""
    truth = labels(tmp_path / "truth.json")
    before = output.read_bytes()
    capsys.readouterr()
    assert again(folder, output, "--recall", truth, "--draw", tmp_path / "one") == 0
    shown = capsys.readouterr()
    assert shown.err == (
        f"{output}: has the boxes of the same images and options; nothing is searched\n"
    )
    assert searched == []
    assert output.read_bytes() == before
    assert not journal_of(output).exists()
    fresh = tmp_path / "fresh.json"
    assert again(folder, fresh, "--recall", truth, "--draw", tmp_path / "two") == 0
    expected = capsys.readouterr().out.splitlines()
    assert searched == ["a.png", "b.png", "sub/c.png"]
    assert fresh.read_bytes() == before
    assert shown.out.splitlines()[:-2] == expected[:-2]  # recall; paths and times differ
    one, two = pictures(tmp_path / "one"), pictures(tmp_path / "two")
    assert len(one) == 3
    assert one == two


def test_a_run_ends_with_a_summary(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out.json"
    for _ in range(2):  # the second time without a search
        assert again(folder, output) == 0
        count = len(json.loads(output.read_text())["annotations"])
        last = capsys.readouterr().out.splitlines()[-1]
        words = rf"3 images, {count} boxes \({count / 3:.1f} per image\) in \d+\.\d s: "
        assert re.fullmatch(words + re.escape(str(output)), last)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--nms", "0.9"], "nms_iou 0.5, not 0.9"),
        (["--max-boxes", "3"], "max_boxes null, not 3"),
        (["--search", "fast", "--search-side", "100"],
         'search "thorough", not "fast"; search_side 320, not 100'),
        (["--filter", "none"], "box_filter"),
    ],
)
def test_other_options_search_again(
    folder: Path, output: Path, searched: list[str], capsys: pytest.CaptureFixture[str],
    options: list[str], words: str,
) -> None:
    capsys.readouterr()
    assert again(folder, output, *options) == 0
    said = capsys.readouterr().err
    assert f"{output}: was made with " in said
    assert words in said
    assert len(searched) == 3
    again(folder, output, *options)
    assert len(searched) == 3


def test_options_that_change_no_box_do_not_matter(
    folder: Path, output: Path, searched: list[str]
) -> None:
    assert again(folder, output, "--batch", 2, "--skip-bad") == 0
    assert searched == []


def change(folder: Path) -> None:
    Image.fromarray(draw(77)).save(folder / "b.png")


def add(folder: Path) -> None:
    shutil.copy(folder / "b.png", folder / "d.png")


@pytest.mark.parametrize("modify", [change, add, lambda f: (f / "b.png").unlink()])
def test_other_images_search_again(
    folder: Path, output: Path, searched: list[str], capsys: pytest.CaptureFixture[str], modify
) -> None:
    modify(folder)
    assert again(folder, output) == 0
    assert "was made with other images or given boxes; searching again" in capsys.readouterr().err
    assert "sub/c.png" in searched


def test_a_folder_may_move(
    folder: Path, output: Path, searched: list[str], tmp_path: Path
) -> None:
    moved = tmp_path / "elsewhere" / "photos"
    shutil.copytree(folder, moved)
    shutil.rmtree(folder)
    assert again(moved, output.rename(tmp_path / "elsewhere" / "p.json")) == 0
    assert searched == []


def test_given_boxes_are_compared(folder: Path, tmp_path: Path, searched: list[str]) -> None:
    truth, output = labels(tmp_path / "truth.json"), tmp_path / "gt.json"
    options = ("--annotations", truth, "--source", "gt")
    assert again(folder, output, *options) == 0
    assert searched == ["a.png"]
    assert again(folder, output, *options) == 0
    assert searched == ["a.png"]
    content = json.loads(truth.read_text())
    content["annotations"][0]["bbox"][0] += 1
    truth.write_text(json.dumps(content))
    assert again(folder, output, *options) == 0
    content["images"][0]["id"] = content["annotations"][0]["image_id"] = 8
    content["annotations"].pop()
    truth.write_text(json.dumps(content))
    assert again(folder, output, *options) == 0
    assert searched == ["a.png"] * 3


def test_images_left_out_are_tried_again_unless_that_is_accepted(
    folder: Path, tmp_path: Path, searched: list[str]
) -> None:
    (folder / "bad.png").touch()
    output = tmp_path / "bad.json"
    assert again(folder, output, "--skip-bad") == 0
    searched.clear()
    assert again(folder, output, "--skip-bad") == 0
    assert searched == []
    assert again(folder, output) == 1
    assert "bad.png" in searched
    searched.clear()
    assert again(folder, output) == 1  # the journal has the others
    assert searched == ["bad.png"]
    journal_of(output).unlink()
    assert again(folder, output, "--skip-bad") == 0
    assert searched == ["bad.png"]


@pytest.mark.parametrize("info", [None, [1], {"year": 2020}, {RECORD: "by hand"}])
def test_a_file_without_a_record_is_taken_to_be_looked_at(
    folder: Path, output: Path, searched: list[str], tmp_path: Path,
    capsys: pytest.CaptureFixture[str], info: object,
) -> None:
    content = json.loads(output.read_text())
    content["info"] = info
    content["annotations"] = content["annotations"][::-1]  # in any order: scores tell
    output.write_text(json.dumps(content))
    capsys.readouterr()
    assert again(folder, output, "--draw", tmp_path / "pictures") == 0
    assert "does not say how it was made; its boxes are taken" in capsys.readouterr().err
    assert searched == []
    assert again(folder, tmp_path / "new.json", "--draw", tmp_path / "expected") == 0
    assert pictures(tmp_path / "pictures") == pictures(tmp_path / "expected")
    searched.clear()
    assert again(folder, output) == 0
    assert len(searched) == 3


@pytest.mark.parametrize("images", [[], [{"id": 1, "file_name": "x", "width": 2, "height": 2}]])
def test_a_file_of_no_image_or_others_is_written_again(
    folder: Path, output: Path, searched: list[str], tmp_path: Path, images: list
) -> None:
    before = output.read_bytes()
    output.write_text(json.dumps({"images": images, "annotations": [], "categories": []}))
    assert again(folder, output, "--draw", tmp_path / "pictures") == 0
    assert len(searched) == 3
    assert output.read_bytes() == before


@pytest.mark.parametrize("text", ["", "{", "[]", '{"images": 3}'])
def test_a_file_that_is_no_coco_json_is_written_again(
    folder: Path, output: Path, searched: list[str], capsys: pytest.CaptureFixture[str], text: str
) -> None:
    before = output.read_bytes()
    output.write_text(text)
    capsys.readouterr()
    assert again(folder, output) == 0
    assert "searching again" in capsys.readouterr().err
    assert output.read_bytes() == before


def test_boxes_are_those_that_were_found(tmp_path: Path) -> None:
    """Width and height are written, with two decimals; the far corner comes back exactly."""
    folder = three_images(tmp_path / "images")
    output, kept = tmp_path / "out.json", {}
    original = Journal.boxes

    def note(journal: Journal, file: str) -> np.ndarray:
        kept[file] = original(journal, file)
        return kept[file]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Journal, "boxes", note)
        assert again(folder, output, "--nms", 1, "--filter", "none") == 0
    work = list_work(folder, None, "search")
    expected = record(folder, [job.file for job in work.jobs], "", {})
    content = json.loads(output.read_text())
    content.pop("info")
    output.write_text(json.dumps(content))
    existing = take_existing(output, work, expected, True, False, False, lambda sentence: None)
    assert existing is not None
    assert existing.count == sum(map(len, kept.values())) > 50
    for file, boxes in kept.items():
        np.testing.assert_array_equal(existing.boxes(file), boxes)


def test_fonts_of_the_pictures(
    folder: Path, output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "font.ttf").write_bytes(b"none")
    options = ("--draw", tmp_path / "pictures", "--font", tmp_path / "font.ttf")
    assert again(folder, output, *options) == 1
    assert "font.ttf: cannot be used as a font" in capsys.readouterr().err
