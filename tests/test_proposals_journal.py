"""The journal by itself: what goes in comes out, whatever happens to the file."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from data.errors import DataError
from data.proposals.journal import Journal
from data.proposals.workers import FileState, Found


def found(file: str, boxes: list[list[float]], bytes_: int = 10) -> Found:
    array = np.array(boxes, dtype=np.float64).reshape(-1, 4)
    return Found(file, FileState(bytes_, 1_700_000_000_123_456_789), 60, 80, array)


def test_boxes_survive_exactly(tmp_path: Path) -> None:
    path = tmp_path / "new" / "j.jsonl"
    values = np.random.default_rng(0).uniform(0, 5000, (200, 4)).astype(np.float32)
    boxes = values.astype(float).round(2)
    name = os.fsdecode(b"sub/\xff\n\xc3\xa4.png")  # any name that a file can have
    with Journal(path, "d", pytest.fail) as journal:
        journal.add(found(name, boxes.tolist()))
        journal.add(found("none.png", []))
        assert np.array_equal(journal.boxes(name), boxes)
    with Journal(path, "d", pytest.fail) as journal:
        assert len(journal) == 2
        assert np.array_equal(journal.boxes(name), boxes)
        assert journal.boxes("none.png").shape == (0, 4)
        assert journal.find(name, FileState(10, 1_700_000_000_123_456_789)) == (60, 80)
        assert journal.find(name, FileState(11, 1_700_000_000_123_456_789)) is None
        assert journal.find(name, FileState(10, 1_700_000_000_123_456_788)) is None
        assert journal.find("other.png", FileState(10, 1_700_000_000_123_456_789)) is None
        assert journal.size(name) == (60, 80)


def test_each_line_is_out_at_once_and_the_last_of_a_file_counts(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    with Journal(path, "d", pytest.fail) as journal:
        for count in range(1, 4):
            journal.add(found("a.png", [[0, 0, 1, count]], bytes_=count))
            assert path.read_bytes().count(b"\n") == 1 + count
    with Journal(path, "d", pytest.fail) as journal:
        assert len(journal) == 1
        assert journal.boxes("a.png").tolist() == [[0, 0, 1, 3]]
        assert journal.find("a.png", FileState(2, 1_700_000_000_123_456_789)) is None
        journal.remove()
    assert not path.exists()


def test_a_torn_line_is_cut_off_wherever_the_kill_came(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    with Journal(path, "d", pytest.fail) as journal:
        journal.add(found("a.png", [[0, 0, 1, 1]]))
        kept = path.stat().st_size
        journal.add(found("b.png", [[0, 0, 2, 2]]))
    complete = path.read_bytes()
    for end in range(kept, len(complete)):
        path.write_bytes(complete[:end])
        with Journal(path, "d", pytest.fail) as journal:
            assert len(journal) == 1
            assert path.stat().st_size == kept
            journal.add(found("b.png", [[0, 0, 2, 2]]))
            assert journal.boxes("a.png").tolist() == [[0, 0, 1, 1]]
            assert journal.boxes("b.png").tolist() == [[0, 0, 2, 2]]
        assert path.read_bytes() == complete


def test_a_full_disk_is_named_and_nothing_is_lost(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")  # not on Windows
    path = tmp_path / "j.jsonl"
    with Journal(path, "d", pytest.fail) as journal:
        journal.add(found("a.png", [[0, 0, 1, 1]]))
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        # A file may grow by 20 bytes: the write is cut short, the next one fails.
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 20, before[1]))
        try:
            with pytest.raises(DataError, match=r"j\.jsonl: cannot be written .*make room"):
                journal.add(found("b.png", [[0, 0, 2, 2]]))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    with Journal(path, "d", pytest.fail) as journal:
        assert journal.boxes("a.png").tolist() == [[0, 0, 1, 1]]
        assert len(journal) == 1


def journal_of_three(path: Path) -> list[bytes]:
    """The lines of a journal with an image each."""
    with Journal(path, "d", pytest.fail) as journal:
        for name, boxes in (("a", [[0, 0, 1.25, 1]]), ("b", []), ("c", [[3, 4, 5, 60.5]] * 2)):
            journal.add(found(f"{name}.png", boxes))
    return path.read_bytes().splitlines(keepends=True)


def test_any_flipped_bit_of_an_image_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    header, first, second, third = journal_of_three(path)
    for bit in range(8 * len(second)):
        damaged = bytearray(second)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(header + first + damaged + third)
        said: list[str] = []
        with Journal(path, "d", said.append) as journal:
            assert journal.find("b.png", FileState(10, 1_700_000_000_123_456_789)) is None
            assert journal.boxes("a.png").tolist() == [[0, 0, 1.25, 1]]
            # Without its line break, a line runs on into the next one.
            assert len(journal) == (2 if damaged.endswith(b"\n") else 1)
        assert len(said) == 1, (bit, said)
        assert said[0].endswith("; such images are searched again")


def test_lines_of_earlier_versions_have_no_checksum_and_are_taken(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    header, *lines = journal_of_three(path)
    old = [line[: line.index(b',"crc32"')] + b"}\n" for line in lines]
    assert json.loads(old[0]).keys() == {"file", "bytes", "mtime_ns", "height", "width", "boxes"}
    path.write_bytes(header + old[0] + lines[1] + old[2])
    with Journal(path, "d", pytest.fail) as journal:
        assert journal.boxes("a.png").tolist() == [[0, 0, 1.25, 1]]
        assert journal.boxes("c.png").tolist() == [[3, 4, 5, 60.5]] * 2
        assert len(journal) == 3


def test_damage_while_the_journal_is_open_is_named(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    journal_of_three(path)
    with Journal(path, "d", pytest.fail) as journal:
        path.write_bytes(path.read_bytes().replace(b"60.5", b"61.5", 1))
        assert journal.boxes("a.png").tolist() == [[0, 0, 1.25, 1]]
        with pytest.raises(DataError, match=r"j\.jsonl: the line of c\.png has changed"):
            journal.boxes("c.png")


def test_a_place_where_no_journal_can_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "j.jsonl").mkdir()
    for path in (tmp_path / "file" / "j.jsonl", tmp_path / "j.jsonl"):
        with pytest.raises(DataError, match=r"j\.jsonl: cannot be written .*another place"):
            Journal(path, "d", pytest.fail)
