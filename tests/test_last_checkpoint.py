"""Which checkpoint a run resumes from: last.pt, or the one before it; and what a kill leaves."""

from __future__ import annotations

import contextlib
import os

import pytest
import torch

from aligndet import checkpoint, dist
from aligndet.last_checkpoint import find_checkpoint, whole_checkpoint


def state(step):
    content = {"step": step, "model": {"w": torch.full((300,), float(step))}, "processes": 1}
    return {**content, "optimizer": {}, "config": {}}


@pytest.fixture
def run(tmp_path):
    """A folder with last.pt of step 4 and last.pt.1 of step 2."""
    for step in (2, 4):
        checkpoint.save(state(step), tmp_path / "last.pt", tmp_path / "last.pt.1")
    return tmp_path


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def flipped(path):
    raw = bytearray(path.read_bytes())
    raw[raw.index(torch.full((300,), 4.0).numpy().tobytes()) + 40] ^= 1
    path.write_bytes(raw)


def zeroed(path):
    path.write_bytes(bytes(path.stat().st_size))


def emptied(path):
    path.write_bytes(b"")


def sealed_wrongly(path):
    """The archive is whole, but a number in it is another."""
    content = torch.load(path, weights_only=True)
    content["step"] = 5
    torch.save(content, path)


DAMAGES = (cut, flipped, zeroed, emptied, sealed_wrongly)


def test_a_whole_one(run, capsys):
    path, found = find_checkpoint("auto", run)
    assert (path.name, found["step"]) == ("last.pt", 4)
    assert find_checkpoint("none", run) is None
    assert capsys.readouterr().out == ""


def test_there_is_none(tmp_path):
    assert find_checkpoint("auto", tmp_path) is None
    assert find_checkpoint("auto", tmp_path / "missing") is None
    with pytest.raises(ValueError, match="holds no last.pt; give --resume the directory"):
        find_checkpoint(str(tmp_path), tmp_path)


@pytest.mark.parametrize("named", ["auto", "folder"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_one_is_replaced_by_the_one_before(run, capsys, damage, named):
    damage(run / "last.pt")
    before = sorted((path.name, path.read_bytes()) for path in run.iterdir())
    path, found = find_checkpoint("auto" if named == "auto" else str(run), run)
    assert (path.name, found["step"]) == ("last.pt.1", 2)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"{run / 'last.pt'}: is damaged (")
    assert line.endswith("); resuming from last.pt.1, step 2")
    assert sorted((path.name, path.read_bytes()) for path in run.iterdir()) == before


def test_a_missing_one_is_replaced_by_the_one_before(run, capsys):
    """As a kill between two renames leaves it, where there are no hard links."""
    (run / "last.pt").unlink()
    assert find_checkpoint("auto", run).state["step"] == 2
    assert "last.pt: is missing; resuming from last.pt.1, step 2" in capsys.readouterr().out


@pytest.mark.parametrize("damage", [cut, zeroed, emptied])
def test_both_are_damaged(run, damage):
    for name in ("last.pt", "last.pt.1"):
        damage(run / name)
    with pytest.raises(ValueError, match=r"last\.pt: is damaged \(.*and so is last\.pt\.1, .*none"):
        find_checkpoint("auto", run)


def test_the_only_one_is_damaged(run):
    (run / "last.pt.1").unlink()
    cut(run / "last.pt")
    with pytest.raises(ValueError, match=r"not a readable checkpoint .*--resume none"):
        find_checkpoint("auto", run)


def test_one_that_is_named_is_not_replaced_but_the_other_is_named(run):
    cut(run / "last.pt")
    with pytest.raises(ValueError, match=r"last\.pt: not a .*; give --resume .*/last\.pt\.1, the"):
        find_checkpoint(str(run / "last.pt"), run)
    assert find_checkpoint(str(run / "last.pt.1"), run).state["step"] == 2


@pytest.mark.parametrize("content", [{"model": {}}, {**state(3), "step": -1}, {"w": 1}])
def test_a_whole_file_of_another_kind_is_an_error(run, content):
    """It is not damage: someone put it there."""
    torch.save(content, run / "last.pt")
    with pytest.raises(ValueError, match=r"last\.pt: "):
        find_checkpoint("auto", run)


class Ranks:
    """Stands in for the group: what rank 0 broadcast, and what each rank brings to a gathering."""

    def __init__(self, monkeypatch, rank, broadcast=None, others=()):
        monkeypatch.setattr(dist, "rank", lambda: rank)
        monkeypatch.setattr(dist, "broadcast_object", lambda item: broadcast or item)
        monkeypatch.setattr(dist, "gather_objects", lambda item: [item, *others])


def test_other_ranks_read_what_rank_0_chose(run, monkeypatch, capsys):
    Ranks(monkeypatch, 1, (run / "last.pt.1", None))
    assert find_checkpoint("auto", run).state["step"] == 2  # though last.pt is whole here
    Ranks(monkeypatch, 1, (None, None))
    assert find_checkpoint("auto", run) is None
    assert capsys.readouterr().out == ""


def test_what_stops_one_rank_stops_all(run, monkeypatch):
    Ranks(monkeypatch, 1, (None, "of rank 0"))
    with pytest.raises(ValueError, match="of rank 0"):
        find_checkpoint("auto", run)
    Ranks(monkeypatch, 1, (run / "elsewhere" / "last.pt", None))
    with pytest.raises(ValueError, match=r"elsewhere/last\.pt: rank 0 .* there is no such file"):
        find_checkpoint("auto", run)
    Ranks(monkeypatch, 0, others=[(None, "of rank 1", "node2")])
    with pytest.raises(ValueError, match=r"last\.pt: rank 0 .*, but on node2 of rank 1; put"):
        find_checkpoint("auto", run)


# What a save does, in order; a kill may come before each of them, and after the last.
STEPS = ("fsync", "unlink", "link", "replace")


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("killed_at", range(7))
def test_a_kill_at_any_moment_leaves_a_whole_one(run, monkeypatch, killed_at, links):
    done = []

    class Killed(BaseException):
        pass

    def wrapped(name, function):
        def call(*arguments, **options):
            if len(done) == killed_at:
                raise Killed
            done.append(name)
            if name == "link" and not links:
                raise OSError("hard links are not supported")
            return function(*arguments, **options)

        return call

    for name in STEPS:
        monkeypatch.setattr(os, name, wrapped(name, getattr(os, name)))
    with contextlib.suppress(Killed):
        checkpoint.save(state(6), run / "last.pt", run / "last.pt.1")
    monkeypatch.undo()
    found = find_checkpoint("auto", run)
    assert found.state["step"] in (4, 6)
    # `os.replace` puts the new file in place; the clean-up after it may be cut off.
    written = done.count("replace") == (1 if links else 2)
    assert found.state["step"] == (6 if written else 4)
    if written:
        assert find_checkpoint(str(run / "last.pt.1"), run).state["step"] == 4


def test_the_newest_whole_one(run):
    assert whole_checkpoint(run) == run / "last.pt"
    cut(run / "last.pt")
    assert whole_checkpoint(run) == run / "last.pt.1"
    cut(run / "last.pt.1")
    assert whole_checkpoint(run) is None
