"""Columns give back what was added, in order, from memory or from a file."""

from __future__ import annotations

import io

import numpy as np
import pytest

from data import box_columns
from data.box_columns import BoxColumns, Column, Values
from data.packed_file import Packed, PackedWriter


@pytest.fixture(autouse=True, params=["in memory", "in a file"])
def small(request, monkeypatch):
    monkeypatch.setattr(box_columns, "ROWS", 4)
    if request.param == "in a file":
        monkeypatch.setattr(box_columns, "IN_MEMORY", 16)


@pytest.mark.parametrize("width", [None, 4])
@pytest.mark.parametrize("dtype", [np.float64, np.int32, bool])
def test_a_column(tmp_path, dtype, width):
    rng = np.random.default_rng(0)
    parts = [rng.integers(0, 2, (n, width) if width else n).astype(dtype) for n in (3, 0, 7, 1)]
    expected = np.concatenate(parts)
    column = Column(tmp_path, dtype, width)
    for part in parts:
        column.add(part)
        assert np.array_equal(column.whole(), expected[: len(column)])  # reading stops nothing
    assert len(column) == 11
    assert [len(block) for block in column.blocks()] == [4, 4, 3]
    assert np.array_equal(np.concatenate(list(column.blocks())), expected)
    order = rng.permutation(11)
    assert np.array_equal(np.concatenate(list(column.blocks(order))), expected[order])


@pytest.mark.parametrize("order", [None, np.zeros(0, np.int64)])
def test_an_empty_column_has_an_empty_block(tmp_path, order):
    column = Column(tmp_path, np.float64, 4)
    assert [block.shape for block in column.blocks(order)] == [(0, 4)]


def test_boxes_are_grouped_by_image_in_the_order_of_the_file():
    columns = BoxColumns()
    xywh = np.arange(24.0).reshape(6, 4)
    half = [slice(0, 3), slice(3, 6)]
    images, labels = ["b", "a", "b", "c", "a", "b"], [9, 9, 4, 4, 9, 9]
    for part in half:
        columns.add(
            Values(images[part], labels[part], xywh[part], np.zeros(3, bool), np.ones(3), None)
        )
    assert columns.references == {"image_id": ["b", "a", "c"], "category_id": [9, 4]}
    assert columns.first_row("image_id", [1, 2]) == 1
    assert columns.first_row("category_id", [1]) == 2
    file = io.BytesIO()
    writer = PackedWriter(file)
    places = np.array([1, 0, 3]), np.array([5, 2])  # of a, b and c among four images; labels
    assert columns.write(writer, *places, 4) == {"all": 0, "ordinary": 0}
    writer.end({})
    packed = Packed(file.getvalue())
    assert packed.stored("starts").tolist() == [0, 2, 5, 5, 6]
    found = packed.numbers("xywh", slice(None), np.float64)
    assert found.tolist() == xywh[[1, 4, 0, 2, 5, 3]].tolist()
    assert packed.numbers("labels", slice(None), np.int64).tolist() == [5, 5, 5, 2, 5, 2]
    assert packed.numbers("box_ids", slice(None), np.int64).tolist() == [2, 5, 1, 3, 6, 4]
    assert columns.mended == {"annotation_ids": 6}


def test_repeated_boxes_are_counted():
    columns = BoxColumns()
    xywh = np.array([[1, 2, 3, 4]] * 6 + [[1, 2, 3, 4.5], [1, 2, -0.0, 4], [1, 2, 0.0, 4]])
    images = ["a", "a", "b", "a", "a", "a", "a", "a", "a"]
    labels = [1, 1, 1, 2, 1, 1, 1, 1, 1]
    crowd = np.array([0, 0, 0, 0, 1, 0, 0, 0, 0], bool)
    columns.add(Values(images, labels, xywh, crowd, np.ones(9), np.arange(9)))
    file = PackedWriter(io.BytesIO())
    found = columns.write(file, np.array([0, 1]), np.array([0, 1]), 2)
    assert found == {"all": 4, "ordinary": 3}  # 1, 4, 5 and 8; 4 is a crowd
