"""Damage in files of `torch.save` that `torch.load` does not notice."""

from __future__ import annotations

import io
import zipfile

import pytest
import torch

from models.torch_file import read_torch
from models.weight_errors import MoreThanTensors

NUMBERS = torch.arange(1000.0) + 0.5


def read(path):
    return read_torch(path, path.read_bytes()[:64])


def saved(path, content=None, zipped=True):
    content = {"w": NUMBERS, "n": torch.tensor(3)} if content is None else content
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return path


@pytest.mark.parametrize("zipped", [True, False])
def test_whole_files(tmp_path, zipped):
    found = read(saved(tmp_path / "w.pt", zipped=zipped))
    assert torch.equal(found["w"], NUMBERS)
    assert found["n"].item() == 3


def test_a_changed_bit_among_the_numbers_is_found(tmp_path):
    path = saved(tmp_path / "w.pt")
    raw = bytearray(path.read_bytes())
    raw[raw.index(NUMBERS.numpy().tobytes()) + 2] ^= 1
    path.write_bytes(raw)
    assert not torch.equal(torch.load(path, weights_only=True)["w"], NUMBERS)  # torch takes it
    with pytest.raises(zipfile.BadZipFile, match=r"Bad CRC-32 for file 'w/data/0'"):
        read(path)


def test_files_without_checksums_are_read(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        path = saved(tmp_path / "w.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is not None
    assert torch.equal(read(path)["w"], NUMBERS)


def rewritten(path, change=lambda name, raw: raw, compression=zipfile.ZIP_STORED):
    """The archive with changed records, and right checksums."""
    with zipfile.ZipFile(io.BytesIO(path.read_bytes())) as old:
        records = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w", compression) as new:
        for name, raw in records.items():
            new.writestr(name, change(name, raw))
    return path


def test_numbers_that_are_claimed_and_not_there(tmp_path):
    """2^40 in the place of 4: in the pickle, K is before a byte, \\x8a before a longer number."""
    path = saved(tmp_path / "w.pt", {"w": torch.zeros(4)})

    def claim(name, raw):
        long = b"\x8a\x06\x00\x00\x00\x00\x00\x01"
        return raw.replace(b"K\x04", long) if name.endswith("data.pkl") else raw

    with pytest.raises(ValueError, match=r"claims 4,398,046,511,104 bytes of numbers that it does"):
        read(rewritten(path, claim))


def test_too_few_numbers(tmp_path):
    def cut(name, raw):
        return raw[:-4] if name.endswith("data/0") else raw

    with pytest.raises(ValueError, match=r"claims 4,000 bytes of numbers that it does not hold"):
        read(rewritten(saved(tmp_path / "w.pt"), cut))


def test_compressed_records_are_not_unpacked(tmp_path):
    path = rewritten(saved(tmp_path / "w.pt"), compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match="its records are compressed"):
        read(path)


@pytest.mark.filterwarnings("ignore:.*is deprecated")
@pytest.mark.parametrize("kind", ["script", "other zip", "two pickles"])
def test_other_archives(tmp_path, kind):
    path = tmp_path / "w.pt"
    if kind == "script":
        torch.jit.save(torch.jit.script(torch.nn.Identity()), str(path))
    else:
        names = {"other zip": ["a/b.txt"], "two pickles": ["a/data.pkl", "b/data.pkl"]}[kind]
        with zipfile.ZipFile(path, "w") as archive:
            for name in names:
                archive.writestr(name, b"x")
    words = "TorchScript program" if kind == "script" else "zip archive of something else"
    with pytest.raises(ValueError, match=words):
        read(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_records_of_one_name(tmp_path):
    path = saved(tmp_path / "w.pt")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("w/data/0", bytes(4000))
    with pytest.raises(ValueError, match="two of its records have the same name"):
        read(path)


def test_numbers_claimed_by_an_old_file(tmp_path):
    path = saved(tmp_path / "w.pt", {"w": torch.zeros(77)}, zipped=False)
    raw = path.read_bytes().replace(b"K\x4d", b"\x8a\x06\x00\x00\x00\x00\x00\x01")
    path.write_bytes(raw)
    with pytest.raises(ValueError, match="claims more numbers than it holds"):
        read(path)


def test_an_old_file_whose_numbers_are_not_listed(tmp_path):
    """Its last pickle lists them; a tensor that is not in it would keep what the memory held."""
    path = saved(tmp_path / "w.pt", {"w": NUMBERS}, zipped=False)
    listed = path.read_bytes()
    start = listed.rindex(b"\x80\x02]")
    end = listed.index(b".", start) + 1
    path.write_bytes(listed[:start] + b"\x80\x02]q\x00." + listed[end:])
    with pytest.raises(ValueError, match="its list of numbers is not that of its tensors"):
        read(path)


@pytest.mark.parametrize("content", [b"", b"no weights", b"\x80\x02}."])
def test_something_else(tmp_path, content):
    (tmp_path / "w.pt").write_bytes(content)
    with pytest.raises(ValueError, match="it starts like no file of weights"):
        read(tmp_path / "w.pt")


@pytest.mark.parametrize("zipped", [True, False])
def test_sparse_tensors_are_more_than_tensors(tmp_path, zipped):
    path = saved(tmp_path / "w.pt", {"w": torch.eye(3).to_sparse()}, zipped)
    with pytest.raises(MoreThanTensors, match=r"torch\._utils\._rebuild_sparse_tensor"):
        read(path)
