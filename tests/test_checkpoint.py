"""Checkpoints: written all or nothing, read with errors that name the file."""

from __future__ import annotations

import os

import pytest
import torch

from aligndet import checkpoint
from data.errors import StorageError
from models import checksum
from models.weight_errors import DamagedFile


def test_round_trip_into_a_new_folder(tmp_path):
    path = tmp_path / "new" / "last.pt"
    saved = {"model": {"w": torch.arange(3.0)}, "step": 7, "config": {"a": [1, None]}}
    checkpoint.save(saved, path)
    content = checkpoint.load(path, "--resume")
    assert torch.equal(content["model"]["w"], torch.arange(3.0))
    assert (content["step"], content["config"]) == (7, {"a": [1, None]})
    assert os.listdir(path.parent) == ["last.pt"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "last.pt"
    checkpoint.save({"model": {}, "step": 1}, path)

    def half(content, file):
        file.write(b"half a file")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(StorageError, match="disk full"):
        checkpoint.save({"model": {}, "step": 2}, path)
    assert checkpoint.load(path, "--resume")["step"] == 1


def damaged(kind, path):
    checkpoint.save({"model": {"w": torch.zeros(1000)}}, path)
    whole = path.read_bytes()
    if kind == "missing":
        path.unlink()
    elif kind == "folder":
        path.unlink()
        path.mkdir()
    elif kind == "without model":
        torch.save({"w": torch.zeros(1)}, path)
    elif kind == "tensor":
        torch.save(torch.zeros(1), path)
    elif kind == "code":
        torch.save({"model": {}, "run": os.system}, path)
    else:
        path.write_bytes(
            {
                "truncated": whole[: len(whole) // 2],
                "empty": b"",
                "text": b"not a checkpoint",
                "noise": bytes(range(256)) * 8,
                "zip without content": b"PK\x05\x06" + bytes(18),
            }[kind]
        )


@pytest.mark.parametrize(
    "kind",
    [
        "missing",
        "folder",
        "truncated",
        "empty",
        "text",
        "noise",
        "zip without content",
        "code",
        "tensor",
        "without model",
    ],
)
def test_what_cannot_be_used_is_one_sentence_with_file_and_option(kind, tmp_path):
    path = tmp_path / "weights.pt"
    damaged(kind, path)
    with pytest.raises(ValueError, match=r"weights\.pt: .*give --init ") as error:
        checkpoint.load(path, "--init")
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


def test_a_file_carries_a_checksum_which_is_compared_and_not_returned(tmp_path):
    path, content = tmp_path / "w.pt", {"model": {"w": torch.arange(3.0)}}
    checkpoint.save(content, path)
    written = torch.load(path, weights_only=True)
    assert written["checksum"] == checksum.checksum(content)
    assert checkpoint.load(path, "--init").keys() == {"model"}
    written["model"]["w"][1] += 1
    torch.save(written, path)
    with pytest.raises(DamagedFile, match=r"w\.pt: not a readable checkpoint \(its checksum is wr"):
        checkpoint.load(path, "--init")
    del written["checksum"]  # a file of an older version
    torch.save(written, path)
    assert checkpoint.load(path, "--init")["model"]["w"].tolist() == [0, 2, 2]


def test_a_flipped_bit_anywhere_in_the_numbers_is_noticed(tmp_path):
    path = tmp_path / "w.pt"
    numbers = torch.arange(64.0) + 0.5
    torch.save({"model": {"w": numbers}}, path)  # an older version, without a checksum of ours
    whole = path.read_bytes()
    start = whole.index(numbers.numpy().tobytes())
    for place in (0, 100, 255):
        raw = bytearray(whole)
        raw[start + place] ^= 4
        path.write_bytes(raw)
        with pytest.raises(DamagedFile, match="Bad CRC-32"):
            checkpoint.load(path, "--init")


def test_weights_for_other_programs_are_nothing_but_weights(tmp_path):
    checkpoint.save_state_dict({"w": torch.ones(1)}, tmp_path / "w.pth")
    assert torch.load(tmp_path / "w.pth", weights_only=True).keys() == {"w"}


def test_a_missing_entry_is_named(tmp_path):
    torch.save({"model": {}, "stage": "box"}, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=r"w\.pt: has no entry 'config'; give --init another file"):
        checkpoint.load(tmp_path / "w.pt", "--init")


def test_the_size_of_a_file_is_known_before_it_is_written(tmp_path):
    tensors = {"model": {"a": torch.zeros(250_000)}, "optimizer": [{"b": torch.zeros(7_000)}, 3]}
    checkpoint.save(tensors, tmp_path / "a.pt")
    size = (tmp_path / "a.pt").stat().st_size
    assert checkpoint.bytes_of(tensors) == 4 * 257_000
    assert checkpoint.bytes_of(tensors) == pytest.approx(size, rel=0.01)
