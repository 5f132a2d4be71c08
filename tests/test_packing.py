"""A batch survives being packed: values, types, shapes, nesting, and views instead of copies."""

from __future__ import annotations

import math
import pickle
from typing import NamedTuple

import pytest
import torch

from data.packing import ALIGNMENT, SMALL, pack, unpack
from data.records import Record


class Pair(NamedTuple):
    first: torch.Tensor
    second: str


def there_and_back(batch):
    packed = pack(batch)
    block = torch.frombuffer(packed.block() or bytearray(1), dtype=torch.uint8)
    return packed, block, unpack(packed.outline, block)


def assert_same(ours, given):
    assert type(ours) is type(given)
    if isinstance(given, torch.Tensor):
        assert (ours.dtype, ours.shape) == (given.dtype, given.shape)
        assert torch.equal(ours, given)
        assert ours.stride() == given.stride()
    elif isinstance(given, dict):
        assert list(ours) == list(given)
        assert_same(list(ours.values()), list(given.values()))
    elif isinstance(given, (list, tuple)):
        assert len(ours) == len(given)
        for mine, its in zip(ours, given, strict=True):
            assert_same(mine, its)
    else:
        assert ours == given


def test_nested_batches_come_back():
    batch = {
        "images": torch.randn(2, 3, 40, 50),
        "targets": [{"boxes": torch.rand(n, 4), "labels": torch.arange(n)} for n in (3, 0, 1)],
        "ids": [7, "a", None],
        "sizes": [(3, 4), (5, 6)],
        "pair": Pair(torch.tensor(True), "x"),
        "nothing": (),
    }
    assert_same(there_and_back(batch)[2], batch)


@pytest.mark.parametrize(
    "dtype",
    [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8,
     torch.bool],
)  # fmt: skip
def test_types_come_back(dtype):
    batch = [torch.arange(5).to(dtype), torch.tensor(1).to(dtype), torch.zeros(0, 4, dtype=dtype)]
    assert_same(there_and_back(batch)[2], batch)


def test_values_of_slices_and_transposed_tensors_come_back():
    whole = torch.arange(24.0).reshape(4, 6)
    batch = [whole.T, whole[:, 2:4], whole[::2], whole[1].expand(3, 6)]
    back = there_and_back(batch)[2]
    assert [b.tolist() for b in back] == [t.tolist() for t in batch]


@pytest.mark.parametrize("shape", [(2, 3, 70, 50), (1, 3, 8, 8), (2, 3, 1, 9), (2, 1, 6, 6)])
@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_images_come_back_in_their_order_in_memory(shape, memory_format):
    images = torch.arange(math.prod(shape)).view(shape).contiguous(memory_format=memory_format)
    packed, _, back = there_and_back(images)
    assert torch.equal(back, images)
    assert back.is_contiguous(memory_format=memory_format)
    assert packed.tensors[0][1].data_ptr() == images.data_ptr()
    assert packed.tensors[0][1].is_contiguous()  # no copy is needed to send it


def test_tensors_are_aligned_and_do_not_overlap():
    batch = [torch.ones(n, dtype=torch.uint8) for n in (1, 64, 65, 3)]
    packed = pack(batch)
    assert [offset for offset, _ in packed.tensors] == [0, 64, 128, 256]
    assert packed.size == 259
    assert all(offset % ALIGNMENT == 0 for offset, _ in packed.tensors)
    assert sum(packed.block()) == 1 + 64 + 65 + 3


def test_large_tensors_are_views_and_small_ones_are_not():
    """A kept tensor of a few labels must not keep the images of its batch."""
    large, small = torch.zeros(SMALL // 4 + 1), torch.zeros(SMALL // 4)
    _, block, (ours, kept) = there_and_back([large, small])
    assert ours.untyped_storage().data_ptr() == block.untyped_storage().data_ptr()
    assert kept.untyped_storage().nbytes() == SMALL


def test_the_outline_holds_no_values():
    packed = pack({"images": torch.zeros(1000, 1000), "record": Record(1, "a", 2, 3, *[torch.zeros(
        500, 4)] * 2)})  # fmt: skip
    assert len(packed.outline) < 500


def test_a_batch_without_tensors():
    packed, _, back = there_and_back([{"a": 1}])
    assert packed.size == 0
    assert back == [{"a": 1}]


def test_what_cannot_be_pickled_is_an_error():
    with pytest.raises((pickle.PicklingError, AttributeError)):
        pack([lambda: None])
