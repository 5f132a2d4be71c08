"""Looking through nested content, and tensors that are not ordinary."""

from __future__ import annotations

import pytest
import torch

from models.plain_content import check_plain, entries

W = torch.arange(6.0).reshape(2, 3)


def test_every_entry_in_order():
    content = {"a": [1, {"b": None}], 3: ("x",)}
    assert list(entries(content)) == [
        (0, "a", [1, {"b": None}]),
        (1, 0, 1),
        (1, 1, {"b": None}),
        (2, "b", None),
        (0, 3, ("x",)),
        (1, 0, "x"),
    ]


@pytest.mark.parametrize(
    "tensor",
    [W, W.T, W[:, 1:], W[0, 0], W[:0], torch.stack([W, W])[1], W[:1].expand(1, 3), W.bfloat16()],
)
def test_ordinary_tensors(tensor):
    check_plain({"w": [tensor]}, size=100)


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (W.to_sparse(), r"w is not an ordinary tensor \(sparse_coo, cpu\)"),
        (W.to("meta"), r"w is not an ordinary tensor \(strided, meta\)"),
        (torch.zeros(1).expand(1 << 40), "w shows the same numbers several times"),
        (W[:, :1].expand(2, 3), "w shows the same numbers several times"),
        (torch.as_strided(W, (3, 4), (1, 1)), "w shows the same numbers several times"),
    ],
)
def test_other_tensors(tensor, words):
    with pytest.raises(ValueError, match=words):
        check_plain({"model": {"w": tensor}}, size=1 << 50)


def test_the_same_numbers_in_many_tensors():
    check_plain([W] * 10, size=24)
    with pytest.raises(ValueError, match="many times the numbers that it holds"):
        check_plain([W] * 11, size=24)


def test_containers_that_hold_each_other():
    itself = []
    itself.append(itself)
    doubled = [1]
    for _ in range(40):
        doubled = [doubled, doubled]  # 2^40 entries in 41 lists
    for content in (itself, doubled):
        with pytest.raises(ValueError, match="nested without end"):
            check_plain(content, size=100)
