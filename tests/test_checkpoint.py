"""Checkpoints: written all or nothing, read with errors that name the file."""

from __future__ import annotations

import os

import pytest
import torch

from aligndet import checkpoint


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
    with pytest.raises(OSError, match="disk full"):
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
