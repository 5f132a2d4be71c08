"""Arrays come back from a packed file exactly; files that are cut off or damaged are refused."""

from __future__ import annotations

import io
import multiprocessing
import pickle

import numpy as np
import pytest

from data import packed_file
from data.errors import DataError
from data.packed_file import Packed, PackedWriter, is_packed

RNG = np.random.default_rng(0)
NUMBERS = {
    "small": np.arange(200),
    "negative": np.arange(-100, 100),
    "16 bits": np.arange(0, 60_000, 300),
    "32 bits": np.arange(0, 10**9, 10**7),
    "64 bits": np.array([0, 2**53 + 1, -(2**60)]),
    "whole floats": np.arange(200.0) - 100,
    "hundredths": RNG.integers(-(10**6), 10**6, 500) / 100,
    "many hundredths": RNG.integers(0, 10**8, 500) / 100,
    "large hundredths": RNG.integers(0, 10**11, 500) / 100,
    "any floats": RNG.random(100) * 1000,
    "tiny": np.array([1e-300, 0.0, -0.25]),
    "none": np.zeros(0),
    "table": RNG.integers(0, 64_000, (300, 4)) / 100,
}
BYTES = {  # of each number
    "small": 1, "negative": 1, "16 bits": 2, "32 bits": 4, "64 bits": 8, "whole floats": 1,
    "hundredths": 4, "many hundredths": 4, "large hundredths": 8, "any floats": 8, "table": 2,
}  # fmt: skip


def write(file, arrays=NUMBERS, block=128):
    writer = PackedWriter(file)
    for name, array in arrays.items():

        def blocks(array=array):
            for start in range(0, max(1, len(array)), block):
                yield array[start : start + block]

        writer.add_numbers(name, blocks)
    writer.add("as it is", [np.array([True, False])])
    writer.end({"made": "here"})


@pytest.fixture
def path(tmp_path):
    with open(tmp_path / "a.packed", "wb") as file:
        write(file)
    return tmp_path / "a.packed"


def assert_all_there(packed):
    for name, array in NUMBERS.items():
        found = packed.numbers(name, slice(None), array.dtype.type)
        assert found.dtype == array.dtype
        assert np.array_equal(found, array)
        part = packed.numbers(name, slice(2, 5), array.dtype.type)
        assert np.array_equal(part, array[2:5])
    assert packed.stored("as it is").tolist() == [True, False]
    assert packed.content == {"made": "here"}


def test_arrays_come_back(path):
    packed = Packed(path)
    assert_all_there(packed)
    assert "small" in packed
    assert "other" not in packed
    packed.forget()
    assert_all_there(packed)
    memory = io.BytesIO()
    write(memory)
    assert_all_there(Packed(memory.getvalue()))


@pytest.mark.parametrize("name", BYTES)
def test_numbers_take_little_room(path, name):
    assert Packed(path).stored(name).itemsize == BYTES[name]


def test_it_is_opened_again_in_another_process(path):
    assert len(pickle.dumps(Packed(path))) < 500
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        pool.apply(assert_all_there, (Packed(path),))


def test_another_file_in_its_place_is_noticed(path):
    sent = pickle.dumps(Packed(path))
    with open(path, "wb") as file:
        write(file, {"other": np.arange(3)})
    with pytest.raises(DataError, match="written anew while it was in use"):
        pickle.loads(sent)


def test_every_wrong_byte_is_noticed(path):
    content = path.read_bytes()
    outline = Packed(path)._arrays  # gaps between arrays do not matter
    starts = [entry["start"] for entry in outline.values() if np.prod(entry["shape"])]
    for place in [*starts, len(content) - 300, len(content) - 1, len(content) - 20]:
        wrong = bytearray(content)
        wrong[place] ^= 4
        path.write_bytes(wrong)
        with pytest.raises(DataError, match=r"a\.packed: is (damaged|no packed file)"):
            Packed(path)


@pytest.mark.parametrize("length", [0, 1, 24, 100, -1, -24])
def test_a_file_that_is_cut_off_is_refused(path, length):
    content = path.read_bytes()
    path.write_bytes(content[:length])
    assert not is_packed(path)
    with pytest.raises(DataError, match="is no packed file, or is cut off"):
        Packed(path)
    path.write_bytes(content[-24:])  # its end alone
    with pytest.raises(DataError, match="is damaged"):
        Packed(path)


def test_missing_files(tmp_path):
    assert not is_packed(tmp_path / "none")
    with pytest.raises(DataError, match="no such file"):
        Packed(tmp_path / "none")


def test_an_array_needs_a_block():
    with pytest.raises(ValueError, match="x: an array needs a block"):
        PackedWriter(io.BytesIO()).add("x", [])


def test_blocks_cover_an_array(monkeypatch):
    monkeypatch.setattr(packed_file, "BLOCK", 3)
    assert [len(b) for b in packed_file.in_blocks(np.arange(7))] == [3, 3, 1]
    assert [len(b) for b in packed_file.in_blocks(np.arange(0))] == [0]
