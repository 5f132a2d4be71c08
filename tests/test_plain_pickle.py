"""Pickles of arrays; the formats that they come in are tested with `weights_file`."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from models.plain_pickle import read_pickle
from models.weight_errors import MoreThanTensors


def test_arrays(tmp_path):
    (tmp_path / "w.pkl").write_bytes(pickle.dumps({"w": np.arange(3), "n": np.float32(2)}))
    found = read_pickle(tmp_path / "w.pkl")
    assert found["w"].tolist() == [0, 1, 2]
    assert found["n"] == 2


def test_what_it_would_call_is_named(tmp_path):
    (tmp_path / "w.pkl").write_bytes(b"cbuiltins\nbytearray\n(I8\ntR.")
    with pytest.raises(MoreThanTensors, match=r"^builtins\.bytearray$"):
        read_pickle(tmp_path / "w.pkl")


def test_a_huge_memo_is_not_made(tmp_path):
    (tmp_path / "w.pkl").write_bytes(b"\x80\x02}r\xff\xff\xff\x7f.")
    with pytest.raises(ValueError, match="byte 3 of its pickle is damaged"):
        read_pickle(tmp_path / "w.pkl")
