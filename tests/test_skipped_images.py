"""The list of skipped images: each file once, whoever writes, and after a kill."""

from __future__ import annotations

import json

import pytest

from aligndet.skipped_images import SkippedImages
from data.errors import StorageError
from data.images import BadFile

A, B, C = (BadFile(f"{name}.jpg", f"{name}.jpg: bad\x1b") for name in "abc")


def listed(path):
    return [json.loads(line)["file"] for line in path.read_text().splitlines()]


def test_each_file_is_listed_once(tmp_path, capsys):
    path = tmp_path / "run" / "skipped_images.jsonl"
    skipped = SkippedImages(path)
    skipped.note(())
    assert not path.exists()
    for news in ((A,), (), (A, B), (B,), (B, A)):
        skipped.note(news)
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"file": "a.jpg", "reason": A.reason},
        {"file": "b.jpg", "reason": B.reason},
    ]
    assert capsys.readouterr().out.count("skipped: ") == 2


def test_several_ranks_write_to_it(tmp_path):
    path = tmp_path / "skipped_images.jsonl"
    ranks = [SkippedImages(path), SkippedImages(path)]
    ranks[0].note((A,))
    ranks[1].note((A, B))
    ranks[0].note((B, C))
    assert listed(path) == ["a.jpg", "b.jpg", "c.jpg"]


def test_a_resumed_run_goes_on_with_the_list(tmp_path):
    path = tmp_path / "skipped_images.jsonl"
    SkippedImages(path).note((A, B))
    whole = path.read_bytes()
    for end in (len(whole), len(whole) - 1, len(whole) - 9):  # killed within the last line
        path.write_bytes(whole[:end])
        SkippedImages(path).note((A, B, C))
        lines = path.read_text().splitlines()
        assert [json.loads(line)["file"] for line in lines if line.endswith("}")] == [
            "a.jpg", "b.jpg", "c.jpg",
        ]  # fmt: skip


def test_a_run_that_starts_over_has_a_new_list(tmp_path):
    skipped = SkippedImages(tmp_path / "skipped_images.jsonl")
    skipped.note((A,))
    skipped.remove()
    skipped.remove()
    skipped.note((B,))
    assert listed(skipped.path) == ["b.jpg"]


def test_a_list_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "run").touch()
    with pytest.raises(StorageError, match=r"run/skipped_images\.jsonl: cannot be written \("):
        SkippedImages(tmp_path / "run" / "skipped_images.jsonl").note([A])
