"""What a packed COCO file tells of images and boxes, by hand; `test_coco_packing.py` compares whole
files with `load_coco`."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest

from data import packed_coco
from data.coco_packing import pack_coco
from data.packed_coco import PackedCoco, box_areas
from data.packed_file import Packed

CONTENT = {
    "images": [{"id": i, "file_name": f"{i}.png", "height": 40, "width": 50} for i in (7, 3, 5)],
    "annotations": [
        {"id": 11, "image_id": 3, "category_id": 9, "bbox": [1, 2, 3, 4], "area": 6.5},
        {"id": 12, "image_id": 7, "category_id": 2, "bbox": [0, 0, 5, 5], "iscrowd": 1},
        {"id": 13, "image_id": 3, "category_id": 2, "bbox": [1.25, 2, -3, 4]},
    ],
    "categories": [{"id": 9, "name": "nine"}, {"id": 2, "name": "two"}],
    "info": {"year": 2026},
}


@pytest.fixture
def packed(tmp_path):
    """A function that packs a content."""

    def pack(content=CONTENT):
        (tmp_path / "a.json").write_text(json.dumps(content))
        file = io.BytesIO()
        pack_coco(tmp_path / "a.json", file)
        return PackedCoco(Packed(file.getvalue()))

    return pack


def test_images_categories_and_info(packed):
    coco = packed()
    assert len(coco) == 3
    assert [coco.image_id(i) for i in range(3)] == [7, 3, 5]
    assert coco.images()[1] == {"id": 3, "file_name": "3.png", "height": 40, "width": 50}
    assert (coco.category_ids, coco.category_names) == ((2, 9), ("two", "nine"))
    assert coco.info == {"year": 2026}


def test_boxes_are_grouped_by_image(packed):
    coco = packed()
    assert coco.starts.tolist() == [0, 1, 3, 3]
    boxes = coco.boxes(slice(0, 3))
    assert boxes.xywh.tolist() == [[0, 0, 5, 5], [1, 2, 3, 4], [1.25, 2, -3, 4]]
    assert boxes.labels.tolist() == [0, 1, 0]
    assert boxes.crowd.tolist() == [True, False, False]
    assert coco.areas(slice(0, 3)).tolist() == [25, 6.5, 0]
    assert coco.box_ids(slice(1, 3)).tolist() == [11, 13]
    assert coco.crowds() == 1
    assert coco.images_with_boxes(True).tolist() == [0, 1]
    assert coco.images_with_boxes(False).tolist() == [1]


@pytest.mark.parametrize("ids", [("a", "b", "c"), (1, "1", 2**80)])
def test_ids_that_are_no_numbers_of_64_bits(packed, ids):
    content = {**CONTENT, "annotations": []}
    content["images"] = [
        {**entry, "id": i} for entry, i in zip(CONTENT["images"], ids, strict=True)
    ]
    coco = packed(content)
    assert [coco.image_id(i) for i in range(3)] == list(ids)


def test_unknown_sizes(packed):
    content = {**CONTENT, "images": [{**entry, "width": None} for entry in CONTENT["images"]]}
    coco = packed(content)
    assert coco.sizes.tolist() == [[0, 0]] * 3
    assert coco.images()[0]["height"] is None


@pytest.mark.parametrize("most", [1, 2, 100])
def test_blocks_of_images(packed, monkeypatch, most):
    monkeypatch.setattr(packed_coco, "BLOCK", most)
    runs = list(packed().blocks())
    assert [i for run in runs for i in range(run.start, run.stop)] == [0, 1, 2]
    assert (len(runs) == 1) == (most == 100)


def test_areas_of_boxes():
    assert box_areas(np.array([[0, 0, 2, 3], [0, 0, -2, -3.0]])).tolist() == [6, 0]
