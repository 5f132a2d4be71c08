"""What a pickle would call and claims to hold, found without loading it."""

from __future__ import annotations

import argparse
import collections
import io
import os
import pickle
import zipfile

import pytest
import torch

from models.pickle_outline import Storage, check_memo, outline
from models.weight_errors import MoreThanTensors


def pickled(content):
    """The pickle in a file of `torch.save`."""
    file = io.BytesIO()
    torch.save(content, file)
    with zipfile.ZipFile(file) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        return io.BytesIO(archive.read(name))


@pytest.mark.parametrize(
    ("dtype", "size"),
    [(torch.float32, 4), (torch.bfloat16, 2), (torch.int64, 8), (torch.bool, 1)],
)
def test_bytes_that_tensors_claim(dtype, size):
    weights = collections.OrderedDict(
        a=torch.zeros(3, 5, dtype=dtype), b=torch.zeros((), dtype=dtype)
    )
    found = outline(pickled({"model": weights, "shape": torch.Size([1]), "kind": dtype}))
    assert found == [Storage("0", 15 * size), Storage("1", size)]


def test_a_storage_that_is_shared_is_that_of_each_tensor():
    numbers = torch.zeros(10)
    found = outline(pickled([numbers[:2], torch.nn.Parameter(numbers[4:])]))
    assert found == [Storage("0", 40), Storage("0", 40)]


class Call:
    """Its pickle calls a function."""

    def __init__(self, function, *arguments):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_what_it_would_call_is_named_and_not_called(tmp_path, protocol):
    trap = Call(os.mkdir, str(tmp_path / "made"))
    with pytest.raises(MoreThanTensors, match=r"^(posix|nt)\.mkdir$"):
        outline(io.BytesIO(pickle.dumps({"x": trap}, protocol)))
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("function", [bytearray, argparse.Namespace, torch.save, eval])
def test_other_calls_are_refused(function):
    with pytest.raises(MoreThanTensors, match=function.__name__):
        outline(io.BytesIO(pickle.dumps(Call(function, "1"))))


def test_names_can_be_allowed():
    raw = io.BytesIO(pickle.dumps(argparse.Namespace(lr=1), 2))
    assert outline(raw, frozenset({"argparse.Namespace", "copyreg._reconstructor"})) == []


def test_a_memo_larger_than_the_pickle_is_not_made():
    """Opcode `r` remembers an object under a number of four bytes."""
    check_memo(io.BytesIO(b"\x80\x02}r\x01\x00\x00\x00."))
    with pytest.raises(ValueError, match="byte 3 of its pickle is damaged"):
        check_memo(io.BytesIO(b"\x80\x02}r\xff\xff\xff\x7f."))


@pytest.mark.parametrize("claimed", [-1, 1.5, "4", None])
def test_a_storage_without_a_size_is_refused(claimed):
    class Pickler(pickle.Pickler):
        def persistent_id(self, item):
            return ("storage", torch.FloatStorage, "0", "cpu", claimed) if item == "here" else None

    file = io.BytesIO()
    Pickler(file, 2).dump(["here"])
    file.seek(0)
    with pytest.raises(ValueError, match="a storage is described as"):
        outline(file)
