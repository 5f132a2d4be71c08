"""A killed run of the command resumes where it stopped, and ends like one that was not killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import data.proposals.command
import data.proposals.workers
from data.proposals.command import main
from data.proposals.propose import CPU, propose_shrunk
from data.proposals.workers import propose_files_on_device
from tests.helpers.proposal_command import journal_of
from tests.helpers.two_rectangles import draw

ROOT = Path(__file__).parent.parent
IMAGES = 12
FINISHED = 5  # lines in the journal when the kill comes

# The command, stalled for ever after some lines of the journal, so that the kill can't come too
# late.
STALLED = f"""
import sys, time
from data.proposals import command
from data.proposals.journal import Journal

add, calls = Journal.add, 0

def stalling(*args):
    global calls
    add(*args)
    calls += 1
    while calls == {FINISHED}:
        time.sleep(1)

Journal.add = stalling
sys.exit(command.main())
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    images = tmp_path / "images"
    images.mkdir()
    for i in range(IMAGES):
        Image.fromarray(draw(i)).save(images / f"{i:02d}.png")
    return images


@pytest.fixture
def whole(folder: Path, tmp_path: Path) -> bytes:
    """The output of a run without interruption."""
    output = tmp_path / "whole.json"
    assert run(folder, output) == 0
    return output.read_bytes()


@pytest.fixture
def searched(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of images in each call of the search."""
    sizes: list[int] = []

    def counting(images: list[torch.Tensor], *more: Any) -> list[torch.Tensor]:
        sizes.append(len(images))
        return propose_shrunk(images, *more)

    monkeypatch.setattr(data.proposals.workers, "propose_shrunk", counting)
    return sizes


def run(folder: Path, output: Path, *options: str) -> int:
    return main(["--images", str(folder), "--output", str(output), "--workers", "1", *options])


def kill_midway(folder: Path, output: Path, workers: int) -> None:
    """Start the command, wait until `FINISHED` images are in the journal, send SIGKILL."""
    command = [sys.executable, "-c", STALLED, "--images", str(folder), "--output", str(output),
               "--workers", str(workers), "--batch", "2"]
    child = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE)
    journal = journal_of(output)
    while not journal.exists() or journal.read_bytes().count(b"\n") < 1 + FINISHED:
        assert child.poll() is None, child.communicate()[1]
        time.sleep(0.01)
    child.kill()
    child.communicate()  # ends when the processes of --workers, too, have closed their stderr
    assert child.returncode == -9
    assert not output.exists()


@pytest.mark.parametrize("workers", [1, 2])
def test_killed_and_resumed_equals_uninterrupted(
    folder: Path, tmp_path: Path, whole: bytes, searched: list[int],
    capsys: pytest.CaptureFixture[str], workers: int,
) -> None:
    output = tmp_path / "out.json"
    kill_midway(folder, output, workers)
    with open(journal_of(output), "a") as file:
        file.write('{"file": "11.png", "byt')  # as if the kill had come in the middle of a line
    capsys.readouterr()
    assert run(folder, output, "--batch", "3") == 0
    assert f"resuming: {FINISHED} of {IMAGES} images are done" in capsys.readouterr().err
    assert sum(searched) == IMAGES - FINISHED
    assert output.read_bytes() == whole
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "out.json", "whole.json"]


def test_lines_of_a_killed_run_are_kept(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.json"
    kill_midway(folder, output, workers=1)
    before = journal_of(output).read_bytes()
    (folder / "bad.png").touch()  # with it the next run keeps its journal
    assert run(folder, output) == 1
    after = journal_of(output).read_bytes()
    assert after.startswith(before)
    files = [json.loads(line)["file"] for line in after.splitlines()[1:]]
    assert sorted(files) == [f"{i:02d}.png" for i in range(IMAGES)]


def leave_a_journal(folder: Path, output: Path) -> list[bytes]:
    """A run that keeps its journal because of a bad image; returns the journal's lines."""
    (folder / "bad.png").touch()
    assert run(folder, output) == 1
    (folder / "bad.png").unlink()
    output.unlink()
    lines = journal_of(output).read_bytes().splitlines(keepends=True)
    assert len(lines) == 1 + IMAGES
    return lines


def test_a_changed_image_is_searched_again(
    folder: Path, tmp_path: Path, searched: list[int]
) -> None:
    output, fresh = tmp_path / "out.json", tmp_path / "fresh.json"
    leave_a_journal(folder, output)
    Image.fromarray(draw(77)).save(folder / "03.png")  # another file: size and time
    status = (folder / "05.png").stat()
    os.utime(folder / "05.png", ns=(status.st_atime_ns, status.st_mtime_ns + 1))  # time only
    with open(folder / "07.png", "ab") as file:
        file.write(b"\0")  # size only
    os.utime(folder / "07.png", ns=(0, int(json_line(output, "07.png")["mtime_ns"])))
    searched.clear()
    assert run(folder, output) == 0
    assert sum(searched) == 3
    assert run(folder, fresh) == 0
    assert output.read_bytes() == fresh.read_bytes()


def json_line(output: Path, file: str) -> dict:
    lines = journal_of(output).read_text().splitlines()[1:]
    return next(line for line in map(json.loads, lines) if line["file"] == file)


def test_an_image_that_is_gone_is_left_out(
    folder: Path, tmp_path: Path, searched: list[int], whole: bytes
) -> None:
    output = tmp_path / "out.json"
    leave_a_journal(folder, output)
    (folder / "02.png").rename(tmp_path / "02.png")
    listed = tmp_path / "list.json"
    images = json.loads(whole)["images"]
    listed.write_text(json.dumps({"images": images, "annotations": [], "categories": []}))
    searched.clear()
    assert run(folder, output, "--annotations", str(listed)) == 1
    assert len(json.loads(output.read_text())["images"]) == IMAGES - 1
    (tmp_path / "02.png").rename(folder / "02.png")
    assert run(folder, output, "--annotations", str(listed)) == 0
    assert searched == []  # its line was still there
    assert output.read_bytes() == whole


@pytest.mark.parametrize("damage", ["settings", "header", "torn header", "other file", "empty"])
def test_a_journal_of_another_run_is_started_anew(
    folder: Path, tmp_path: Path, whole: bytes, searched: list[int],
    capsys: pytest.CaptureFixture[str], damage: str,
) -> None:
    output = tmp_path / "out.json"
    lines = leave_a_journal(folder, output)
    header = json.loads(lines[0])
    new = {
        "settings": json.dumps({**header, "digest": "0" * 64}).encode() + b"\n",
        "header": b'{"journal": \0\0\0\n',
        "torn header": b"",
        "other file": b"[1, 2]\n",
        "empty": b"",
    }[damage]
    rest = lines[1:] if damage not in ("torn header", "empty") else []
    if damage == "torn header":
        rest = [lines[0].rstrip()]  # complete, but for its end
    journal_of(output).write_bytes(new + b"".join(rest))
    capsys.readouterr()
    searched.clear()
    assert run(folder, output) == 0
    stderr = capsys.readouterr().err
    words = "was made with other settings" if damage == "settings" else "is not a readable journal"
    assert f"{journal_of(output)}: {words}; starting over\n" in stderr
    assert "resuming" not in stderr
    assert sum(searched) == IMAGES
    assert output.read_bytes() == whole


@pytest.mark.parametrize(
    "options",
    [["--nms", "0.9"], ["--filter", "none"], ["--min-side", "10"], ["--max-boxes", "3"],
     ["--search-side", "50"]],
)
def test_every_option_that_changes_boxes_starts_over(
    folder: Path, tmp_path: Path, searched: list[int], capsys: pytest.CaptureFixture[str],
    options: list[str],
) -> None:
    output, fresh = tmp_path / "out.json", tmp_path / "fresh.json"
    leave_a_journal(folder, output)
    searched.clear()
    assert run(folder, output, *options) == 0
    assert "other settings; starting over" in capsys.readouterr().err
    assert sum(searched) == IMAGES
    assert run(folder, fresh, *options) == 0
    assert output.read_bytes() == fresh.read_bytes()


def test_another_device_starts_over(
    folder: Path, tmp_path: Path, whole: bytes, searched: list[int],
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Though the boxes are the same, and a finished file serves for both."""

    def on_cpu(*arguments: Any) -> Any:
        *others, device, threads, batch, reading = arguments
        assert device.type == "cuda"
        return propose_files_on_device(*others, CPU, threads, batch, reading)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(data.proposals.command, "propose_files_on_device", on_cpu)
    output = tmp_path / "out.json"
    leave_a_journal(folder, output)
    searched.clear()
    assert run(folder, output, "--device", "cuda") == 0
    assert "other settings; starting over" in capsys.readouterr().err
    assert sum(searched) == IMAGES
    assert output.read_bytes() == whole
    assert run(folder, output, "--device", "cpu") == 0
    assert sum(searched) == IMAGES


def test_another_folder_starts_over(
    folder: Path, tmp_path: Path, searched: list[int]
) -> None:
    """Files unpacked from an archive may agree in name, size and time, and yet differ."""
    output = tmp_path / "out.json"
    leave_a_journal(folder, output)
    folder.rename(tmp_path / "moved")
    searched.clear()
    assert run(tmp_path / "moved", output) == 0
    assert sum(searched) == IMAGES


@pytest.mark.parametrize(
    "line",
    [b"\0" * 30 + b"\n", b"[]\n", b'{"file": "04.png"}\n',
     b'{"file":"04.png","bytes":1,"mtime_ns":1,"height":1,"width":1,"boxes":[[1,2,3]]}\n'],
)
def test_a_damaged_line_costs_its_image_only(
    folder: Path, tmp_path: Path, whole: bytes, searched: list[int],
    capsys: pytest.CaptureFixture[str], line: bytes,
) -> None:
    output = tmp_path / "out.json"
    lines = leave_a_journal(folder, output)
    journal_of(output).write_bytes(b"".join([*lines[:5], line, *lines[6:]]))
    capsys.readouterr()
    searched.clear()
    assert run(folder, output) == 0
    stderr = capsys.readouterr().err
    assert "1 damaged line;" in stderr
    assert f"resuming: {IMAGES - 1} of {IMAGES}" in stderr
    assert sum(searched) == 1
    assert output.read_bytes() == whole
