"""Files of weights in every format, and things that are not weights."""

from __future__ import annotations

import argparse
import collections
import fractions
import os
import pickle
import pickletools

import numpy as np
import pytest
import torch

from models.checksum import with_checksum
from models.weight_errors import DamagedFile
from models.weights_file import read_weights_file

ARRAY = np.arange(6, dtype=np.float32).reshape(2, 3)


def check_refused(path, words):
    with pytest.raises(ValueError, match=path.name) as caught:
        read_weights_file(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert words in message
    assert "\n" not in message
    return message


@pytest.mark.parametrize("zipped", [True, False])
def test_what_torch_saves(tmp_path, zipped):
    """NumPy's numbers and command-line options are often beside the weights."""
    content = {
        "model": collections.OrderedDict(w=torch.eye(2)),
        "best": np.float64(0.5),
        "step": np.int64(3),
        "mean": ARRAY,
        "args": argparse.Namespace(lr=0.1),
    }
    torch.save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    found = read_weights_file(tmp_path / "w.pth")
    assert torch.equal(found["model"]["w"], torch.eye(2))
    assert (found["best"], found["step"], found["args"].lr) == (0.5, 3, 0.1)
    assert np.array_equal(found["mean"], ARRAY)


@pytest.mark.parametrize("core", ["numpy.core", "numpy._core"])
def test_both_names_of_numpys_functions(tmp_path, core):
    """NumPy 1 and 2 write different ones."""
    raw = pickle.dumps({"n": np.float64(0.5), "w": ARRAY}, protocol=2)
    assert b"numpy._core" in raw or b"numpy.core" in raw
    raw = raw.replace(b"numpy._core", b"numpy.core").replace(b"numpy.core", core.encode())
    (tmp_path / "w.pkl").write_bytes(raw)
    found = read_weights_file(tmp_path / "w.pkl")
    assert found["n"] == 0.5
    assert np.array_equal(found["w"], ARRAY)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickles_of_arrays(tmp_path, protocol):
    content = {"model": {"w": ARRAY}, "__author__": "torchvision", "matching_heuristics": True}
    (tmp_path / "w.pkl").write_bytes(pickle.dumps(content, protocol=protocol))
    found = read_weights_file(tmp_path / "w.pkl")
    assert np.array_equal(found["model"]["w"], ARRAY)
    assert found["__author__"] == "torchvision"


def test_a_pickle_of_python_2(tmp_path):
    """There an array's bytes are a str: opcode U, with a length of one byte."""
    raw = pickletools.optimize(pickle.dumps(ARRAY, protocol=2))
    start = raw.rindex(b"h\x00X")  # Python 3: encode(a text, "latin1")
    old = raw[:start] + b"U" + bytes([ARRAY.nbytes]) + ARRAY.tobytes() + b"tb."
    (tmp_path / "w.pkl").write_bytes(old)
    assert np.array_equal(read_weights_file(tmp_path / "w.pkl"), ARRAY)


class Trap:
    """Its pickle creates a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("save", [torch.save, lambda x, path: path.write_bytes(pickle.dumps(x))])
def test_no_code_from_a_file_is_run(tmp_path, save):
    save({"model": {"w": torch.ones(1)}, "x": Trap(tmp_path / "made")}, tmp_path / "w.pth")
    check_refused(tmp_path / "w.pth", "holds more than tensors: if you trust it, load it with")
    assert not (tmp_path / "made").exists()


def test_other_classes(tmp_path):
    torch.save({"lr": fractions.Fraction(1, 3)}, tmp_path / "w.pth")
    check_refused(tmp_path / "w.pth", "holds more than tensors")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "cannot be read as weights"),
        (b"no weights", "cannot be read as weights"),
        (b"PK\x03\x04 a damaged archive", "cannot be read as weights"),
        (b"\x80\x02}q\x00", "cannot be read as weights"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1", "a Git LFS pointer"),
        (b"\n<!DOCTYPE html>\n<html>", "is a web page, not weights"),
        (b"<html><head>", "is a web page, not weights"),
    ],
)
def test_what_is_not_weights(tmp_path, content, words):
    (tmp_path / "w.pth").write_bytes(content)
    check_refused(tmp_path / "w.pth", words)


def test_missing_file(tmp_path):
    check_refused(tmp_path / "none.pth", "no such file of weights; give an existing one")


def test_a_file_in_the_place_of_a_folder(tmp_path):
    (tmp_path / "file").write_text("")
    check_refused(tmp_path / "file" / "w.pth", "cannot be read (Not a directory)")


def test_folders(tmp_path):
    check_refused(tmp_path, "is a folder without weights.pt or model.safetensors or pytorch_model")
    torch.save({"w": torch.ones(1)}, tmp_path / "pytorch_model.bin")
    assert read_weights_file(tmp_path)["w"] == 1
    torch.save({"w": torch.zeros(1)}, tmp_path / "weights.pt")  # of a run comes first
    assert read_weights_file(str(tmp_path))["w"] == 0


def test_what_a_file_would_call_is_named(tmp_path):
    torch.save({"x": Trap(tmp_path / "made")}, tmp_path / "w.pth")
    check_refused(tmp_path / "w.pth", "io.open); or give a file that")


def test_a_file_with_a_wrong_checksum(tmp_path):
    content = with_checksum({"model": {"w": torch.ones(3)}})
    torch.save(content, tmp_path / "w.pth")
    assert read_weights_file(tmp_path / "w.pth")["model"]["w"].tolist() == [1, 1, 1]
    content["model"]["w"][1] = 2
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(DamagedFile) as caught:
        read_weights_file(tmp_path / "w.pth")
    assert caught.value.reason.startswith("its checksum is wrong; ")
    check_refused(tmp_path / "w.pth", "(its checksum is wrong; ")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_a_pipe_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "w.pth")
    check_refused(tmp_path / "w.pth", "is not a regular file; give a file of weights")


def test_a_link_to_itself(tmp_path):
    (tmp_path / "w.pth").symlink_to(tmp_path / "w.pth")
    check_refused(tmp_path / "w.pth", "cannot be read (")


def test_what_does_not_fit_into_the_memory_is_not_called_damaged(tmp_path, monkeypatch):
    torch.save({"w": torch.ones(3)}, tmp_path / "w.pth")

    def load(*_, **__):
        raise RuntimeError(
            "DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
        )

    monkeypatch.setattr(torch, "load", load)
    with pytest.raises(ValueError, match="does not fit into the memory; give") as caught:
        read_weights_file(tmp_path / "w.pth")
    assert not isinstance(caught.value, DamagedFile)
