"""The checksum of a content: the same after a round trip, another after any change."""

from __future__ import annotations

import copy
import zlib
from collections import OrderedDict

import pytest
import torch

from models.checksum import check_checksum, checksum, with_checksum

CONTENT = {
    "model": OrderedDict(
        w=torch.arange(6.0).reshape(2, 3),
        half=torch.ones(3, dtype=torch.bfloat16),
        counter=torch.tensor(7),
        empty=torch.zeros(0, 3),
    ),
    "optimizer": {"state": {0: {"momentum_buffer": torch.ones(2)}}, "groups": [{"lr": 0.1}]},
    "config": {"a": [1, None, True], "b": (1.5, "x"), "nan": float("nan")},
}


def test_by_hand():
    """Of one list with a tensor: depth, key and description, then the numbers as they lie in
    memory, row by row."""
    tensor = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).T  # columns: rows after transposing
    numbers = torch.tensor([1.0, 3.0, 2.0, 4.0]).numpy().tobytes()
    expected = zlib.crc32(b"0 'w' list" + b"1 0 torch.float32 (2, 2)" + numbers)
    assert checksum({"w": [tensor]}) == f"crc32 of all entries: {expected:08x}"


@pytest.mark.parametrize("zipped", [True, False])
def test_it_survives_a_round_trip(tmp_path, zipped):
    path = tmp_path / "w.pt"
    torch.save(with_checksum(CONTENT), path, _use_new_zipfile_serialization=zipped)
    loaded = torch.load(path, weights_only=True)
    assert loaded["checksum"] == checksum(CONTENT)
    check_checksum(loaded)
    assert with_checksum(loaded)["checksum"] == loaded["checksum"]  # does not cover itself


def set_in(content, *keys, value):
    for key in keys[:-1]:
        content = content[key]
    content[keys[-1]] = value


CHANGES = {
    "a number": lambda c: c["model"]["w"].view(-1)[3].add_(1e-6),
    "a sign of zero": lambda c: c["model"]["w"].view(-1)[0].neg_(),
    "a counter": lambda c: c["model"]["counter"].add_(1),
    "a shape": lambda c: set_in(c, "model", "w", value=c["model"]["w"].reshape(3, 2)),
    "a dtype of as many bytes": lambda c: set_in(
        c, "model", "half", value=c["model"]["half"].view(torch.float16)
    ),
    "the shape of nothing": lambda c: set_in(c, "model", "empty", value=torch.zeros(3, 0)),
    "a name": lambda c: set_in(c, "model", "v", value=c["model"].pop("empty")),
    "the order": lambda c: c["model"].move_to_end("w"),
    "one less": lambda c: c["model"].pop("half"),
    "a number of the optimiser": lambda c: c["optimizer"]["state"][0]["momentum_buffer"].zero_(),
    "a key's kind": lambda c: set_in(
        c, "optimizer", "state", value={"0": c["optimizer"]["state"][0]}
    ),
    "a plain value": lambda c: set_in(c, "optimizer", "groups", 0, "lr", value=0.2),
    "the kind of a plain value": lambda c: set_in(c, "config", "a", 0, value=True),
    "the kind of a container": lambda c: set_in(c, "config", "b", value=[1.5, "x"]),
    "where a value lies": lambda c: set_in(c, "config", "a", value=[1, [None, True]]),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_every_change_is_noticed(kind):
    content = with_checksum(copy.deepcopy(CONTENT))
    check_checksum(content)
    CHANGES[kind](content)
    with pytest.raises(ValueError, match="its checksum is wrong; .* remove the entry 'checksum'"):
        check_checksum(content)


@pytest.mark.parametrize("content", [CONTENT, {"checksum": "of others"}, {"checksum": 3}, [1], 7])
def test_other_content_is_not_compared(content):
    check_checksum(content)
