"""COCO files: each defect is named with its remedy; boxes, labels and files end up right."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from PIL import Image

from data.coco import CocoDataset, load_coco, read_categories
from data.errors import DataError
from tests.helpers.assertions import assert_clean

CONTENT = {
    "images": [
        {"id": 11, "file_name": "a.png", "width": 40, "height": 30},
        {"id": 7, "file_name": "sub/b.png", "width": 20, "height": 50},
        {"id": 9, "file_name": "c.png", "width": 16, "height": 16},
    ],
    "annotations": [
        {"id": 1, "image_id": 11, "category_id": 90, "bbox": [1, 2, 10, 20]},
        {"id": 2, "image_id": 7, "category_id": 3, "bbox": [0.5, 1.5, 4.25, 8.0], "iscrowd": 0},
        {"id": 3, "image_id": 11, "category_id": 18, "bbox": [5, 5, 30, 20]},
    ],
    "categories": [
        {"id": 18, "name": "dog"},
        {"id": 3, "name": "car"},
        {"id": 90, "name": "toothbrush"},
    ],
}


@pytest.fixture
def content():
    return copy.deepcopy(CONTENT)


@pytest.fixture
def dataset(tmp_path):
    """A function that writes a content and its images to files and opens them."""

    def build(content, **options):
        for entry in content["images"]:
            path = tmp_path / "images" / entry["file_name"]
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                Image.new("RGB", (entry["width"], entry["height"]), (9, 99, 199)).save(path)
        (tmp_path / "a.json").write_text(json.dumps(content))
        return CocoDataset(tmp_path / "images", tmp_path / "a.json", **options)

    return build


def without(section, key):
    def change(content):
        del content[section][1][key]

    return change


def replaced(section, key, value, entry=1):
    def change(content):
        content[section][entry][key] = value

    return change


# What is done to the file, and what the message must say: the defect, then the remedy.
DEFECTS = {
    "no images": (lambda c: c.pop("images"), "no list 'images'", "convert"),
    "no annotations": (lambda c: c.pop("annotations"), "no list 'annotations'", "convert"),
    "no categories": (lambda c: c.pop("categories"), "no list 'categories'", "convert"),
    "images no list": (lambda c: c.update(images={"1": {}}), "no list 'images'", "convert"),
    "entry no object": (lambda c: c["images"].append(5), "'images' has no 'id'", "add it"),
    "image id": (without("images", "id"), "'images' has no 'id'", "add it"),
    "file name": (without("images", "file_name"), "has no 'file_name'", "add it"),
    "width": (without("images", "width"), "has no 'width'", "add it"),
    "height": (without("images", "height"), "has no 'height'", "add it"),
    "its image": (without("annotations", "image_id"), "has no 'image_id'", "add it"),
    "its class": (without("annotations", "category_id"), "has no 'category_id'", "add it"),
    "box": (without("annotations", "bbox"), "'annotations' has no 'bbox'", "add it"),
    "category id": (without("categories", "id"), "'categories' has no 'id'", "add it"),
    "category name": (without("categories", "name"), "has no 'name'", "add it"),
    "list as id": (replaced("images", "id", [1]), "'id' [1]", "correct it"),
    "null width": (replaced("images", "width", None), "'width' null", "correct it"),
    "text width": (replaced("images", "width", "20"), "'width' \"20\"", "correct it"),
    "zero height": (replaced("images", "height", 0), "'height' 0", "correct it"),
    "number as name": (replaced("images", "file_name", 7), "'file_name' 7", "correct it"),
    "list as image": (replaced("annotations", "image_id", [7]), "'image_id' [7]", "correct it"),
    "null class": (
        replaced("annotations", "category_id", None),
        "'category_id' null",
        "correct it",
    ),
    "text as category": (replaced("categories", "id", "3"), "'id' \"3\"", "correct it"),
    "unknown image": (
        replaced("annotations", "image_id", 12),
        "annotation 2 has image_id 12",
        "add the image or remove",
    ),
    "unknown category": (
        replaced("annotations", "category_id", 4),
        "annotation 2 has category_id 4",
        "add the category or remove",
    ),
    "image twice": (replaced("images", "id", 11), "occurs twice in 'images'", "unique"),
    "category twice": (replaced("categories", "id", 18), "twice in 'categories'", "unique"),
    "short box": (replaced("annotations", "bbox", [1, 2, 3]), "annotation 2 has bbox", "correct"),
    "box no list": (replaced("annotations", "bbox", None), "annotation 2 has bbox", "correct"),
    "text in box": (replaced("annotations", "bbox", [1, 2, "3", 4]), "annotation 2", "correct"),
    "nan": (replaced("annotations", "bbox", [1, 2, float("nan"), 4]), "four finite", "correct"),
    "infinite": (replaced("annotations", "bbox", [1, 2, float("inf"), 4]), "finite", "correct"),
}


@pytest.mark.parametrize("name", list(DEFECTS))
def test_structural_defects_are_named(tmp_path, content, name):
    change, defect, remedy = DEFECTS[name]
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(content))
    assert load_coco(path) == content  # right before the change
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(DataError) as error:
        load_coco(path)
    assert_clean(error, path, defect, remedy)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b'{"images": [', ("not valid JSON", "write the file again")),
        (b"", ("not valid JSON", "write the file again")),
        (b"\xff\xfe\x00", ("not valid JSON", "write the file again")),
        (b"[]", ("not a COCO JSON", "convert")),
        (b"null", ("not a COCO JSON", "convert")),
    ],
)
def test_malformed_files(tmp_path, data, words):
    path = tmp_path / "bad.json"
    path.write_bytes(data)
    with pytest.raises(DataError) as error:
        load_coco(path)
    assert_clean(error, path, *words)


def test_missing_file_and_folder_in_its_place(tmp_path):
    with pytest.raises(DataError) as error:
        load_coco(tmp_path / "gone.json")
    assert_clean(error, tmp_path / "gone.json", "no such file", "give the path")
    with pytest.raises(DataError) as error:
        load_coco(tmp_path)
    assert_clean(error, tmp_path, "not valid JSON")


def test_gapped_category_ids_map_to_labels_and_back(content, dataset):
    data = dataset(content)
    categories = data.categories
    assert categories.ids == (3, 18, 90)
    assert categories.names == ("car", "dog", "toothbrush")
    assert len(categories) == 3
    assert [categories.label(i) for i in (3, 18, 90)] == [0, 1, 2]
    assert read_categories(content) == categories
    by_id = {record.image_id: record for record in data.records}
    assert by_id[11].labels.tolist() == [2, 1]
    assert by_id[7].labels.tolist() == [0]
    assert [categories.ids[label] for label in by_id[11].labels] == [90, 18]


def test_boxes_become_xyxy_in_the_order_of_the_file(content, dataset):
    data = dataset(content)
    assert [r.image_id for r in data.records] == [11, 7, 9]
    assert data.records[0].boxes.tolist() == [[1, 2, 11, 22], [5, 5, 35, 25]]
    assert data.records[1].boxes.tolist() == [[0.5, 1.5, 4.75, 9.5]]
    assert data.records[0].boxes.dtype == torch.float32
    assert data.records[0].labels.dtype == torch.int64
    assert data.aspect_ratios == [30 / 40, 50 / 20, 1.0]


def test_reading_an_image(content, dataset):
    data = dataset(content)
    image, record = data.read(1)
    assert image.size == (20, 50)
    assert image.getpixel((3, 3)) == (9, 99, 199)
    assert (record.file_name, record.height, record.width) == ("sub/b.png", 50, 20)


def test_images_without_boxes(content, dataset):
    data = dataset(content)
    assert len(data) == 3
    assert data.records[2].boxes.shape == (0, 4)
    assert data.records[2].labels.shape == (0,)
    assert data.records[2].labels.dtype == torch.int64
    assert [r.image_id for r in dataset(content, skip_empty=True).records] == [11, 7]


def test_nothing_left(content, dataset, tmp_path):
    content["annotations"] = []
    assert len(dataset(content)) == 3
    with pytest.raises(DataError) as error:
        dataset(content, skip_empty=True)
    assert_clean(error, tmp_path / "a.json", "no image with a usable box", "give a file")
    content["images"] = []
    with pytest.raises(DataError) as error:
        dataset(content)
    assert_clean(error, tmp_path / "a.json", "holds no image", "give a file")


def test_boxes_that_stick_out_are_clipped(content, dataset):
    content["annotations"][0]["bbox"] = [-5, -2.5, 100, 10]
    content["annotations"][1]["bbox"] = [15, 45, 10, 10]
    data = dataset(content)
    assert data.records[0].boxes[0].tolist() == [0, 0, 40, 7.5]
    assert data.records[1].boxes.tolist() == [[15, 45, 20, 50]]
    assert data.dropped == 0


@pytest.mark.parametrize(
    ("bbox", "problem"),
    [
        ([5, 5, 0, 10], "no area"),
        ([5, 5, 10, 0], "no area"),
        ([5, 5, -3, 10], "no area"),
        ([5, 5, 1e-6, 10], "next to no area"),  # nothing is left of it in float32
        ([39.9999999, 5, 4, 10], "next to no area"),  # nothing is left of it once clipped
        ([-4, 5, 4.0000001, 10], "next to no area"),
        ([40, 5, 10, 10], "outside the image of 40 x 30"),
        ([5, 30, 10, 10], "outside the image of 40 x 30"),
        ([-10, 5, 10, 10], "outside the image of 40 x 30"),
        ([5, -10, 10, 10], "outside the image of 40 x 30"),
    ],
)
def test_bad_boxes_are_errors_or_dropped(content, dataset, tmp_path, bbox, problem):
    content["annotations"][0]["bbox"] = bbox
    with pytest.raises(DataError) as error:
        dataset(content)
    assert_clean(error, tmp_path / "a.json", "annotation 1 ", problem, "data.bad_boxes=drop")
    data = dataset(content, bad_boxes="drop")
    assert data.dropped == 1
    assert data.records[0].boxes.tolist() == [[5, 5, 35, 25]]
    assert data.records[0].labels.tolist() == [1]


def test_kept_boxes_have_an_area_in_float32(content, dataset):
    content["annotations"][0]["bbox"] = [39.9, 5, 4, 0.1]
    x1, y1, x2, y2 = dataset(content).records[0].boxes[0].tolist()
    assert x2 > x1
    assert y2 > y1


def test_crowds_are_not_trained_on(content, dataset):
    content["annotations"][1]["iscrowd"] = 1
    content["annotations"][2].update(iscrowd=1, bbox=[0, 0, 0, 0])  # not looked at, either
    data = dataset(content)
    assert [len(r.boxes) for r in data.records] == [1, 0, 0]
    assert data.dropped == 0
    assert len(dataset(content, skip_empty=True)) == 1


def test_missing_and_truncated_files_are_found_at_once(content, dataset, tmp_path):
    dataset(content)
    path = tmp_path / "images" / "sub" / "b.png"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError) as error:
        dataset(content)
    assert_clean(error, path, "truncated", "replace it or remove its entry")
    path.unlink()
    with pytest.raises(DataError) as error:
        CocoDataset(tmp_path / "images", tmp_path / "a.json")
    assert_clean(error, path, "missing", "restore it or remove its entry")


def test_skipped_images_need_no_file(content, dataset, tmp_path):
    dataset(content)
    (tmp_path / "images" / "c.png").unlink()
    assert len(CocoDataset(tmp_path / "images", tmp_path / "a.json", skip_empty=True)) == 2


def test_size_other_than_stated(content, dataset, tmp_path):
    dataset(content)
    Image.new("RGB", (30, 40)).save(tmp_path / "images" / "a.png")
    data = dataset(content)
    with pytest.raises(DataError) as error:
        data.read(0)
    path = tmp_path / "images" / "a.png"
    assert_clean(error, path, "30 x 40", "40 x 30", str(tmp_path / "a.json"), "correct")
