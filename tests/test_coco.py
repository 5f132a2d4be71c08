"""Datasets from COCO files: boxes, labels and files end up right, and are counted."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from PIL import Image

from data.coco import CocoDataset, read_categories
from data.coco_boxes import part_inside
from data.coco_contents import Contents
from data.errors import DataError
from data.images import ImageReading
from tests.helpers.assertions import assert_clean
from tests.helpers.coco_quirks import SAME, plain, write

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


@pytest.mark.parametrize("name", list(SAME))
def test_quirks_of_tools_give_the_same_dataset(tmp_path, name):
    expected = CocoDataset(*write(tmp_path / "plain", plain()))
    content = plain()
    SAME[name](content)
    data = CocoDataset(*write(tmp_path, content))
    assert data.categories.names == expected.categories.names == ("car", "dog")
    assert len(data) == 2
    for ours, theirs in zip(data.records, expected.records, strict=True):
        assert ours.file_name == theirs.file_name
        assert (ours.height, ours.width) == (theirs.height, theirs.width)
        assert type(ours.height) is type(ours.width) is int
        assert ours.boxes.tolist() == theirs.boxes.tolist()
        assert ours.labels.tolist() == theirs.labels.tolist()
    listed = {entry["id"] for entry in content["images"]}
    assert {record.image_id for record in data.records} == listed  # the file's own ids
    assert data.read(0)[0].size == (64, 48)


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
    assert data.contents.bad_boxes == 0
    assert data.contents.clipped == 2
    content["annotations"][1]["bbox"] = [15, 40, 5.4, 10]  # as far out as rounding explains
    assert dataset(content).contents.clipped == 1


def test_the_part_of_a_box_inside_an_image():
    inside = [0, 0.1, 40, 29.9]
    assert part_inside(inside, 30, 40) is inside  # not a digit of it changes
    assert part_inside([-5, -2.5, 100, 10], 30, 40) == [0, 0, 40, 7.5]
    assert part_inside([35, 25, 10, 10], 30, 40) == [35, 25, 5, 5]
    assert part_inside([35, 25, 10, 10], None, None) == [35, 25, 10, 10]


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
    assert data.dropped == data.contents.bad_boxes == 1
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
    assert (data.contents.crowds, data.contents.bad_boxes) == (2, 0)
    assert len(dataset(content, skip_empty=True)) == 1
    content["annotations"][2].update(bbox=[5, 5, 30, 20])
    kept = dataset(content, crowd="keep")
    assert [len(r.boxes) for r in kept.records] == [2, 1, 0]
    assert (kept.contents.crowds, kept.contents.kept_crowds) == (0, 2)


@pytest.mark.parametrize("skip_empty", [True, False])
def test_nothing_but_crowds_is_an_error(content, dataset, tmp_path, skip_empty):
    for annotation in content["annotations"]:
        annotation["iscrowd"] = 1
    with pytest.raises(DataError) as error:
        dataset(content, skip_empty=skip_empty)
    assert_clean(error, tmp_path / "a.json", "only 3 crowd boxes", "data.crowd=keep")
    assert len(dataset(content, skip_empty=skip_empty, crowd="keep")) == 3 - skip_empty


def test_nothing_but_bad_boxes_is_an_error(content, dataset, tmp_path):
    for annotation in content["annotations"]:
        annotation["bbox"] = []
    with pytest.raises(DataError) as error:
        dataset(content, bad_boxes="drop")
    assert_clean(error, tmp_path / "a.json", "only 3 boxes without area", "correct the boxes")


def test_boxes_in_fractions_of_the_image_are_an_error(content, dataset, tmp_path):
    for annotation in content["annotations"]:
        annotation["bbox"] = [0.25, 0.25, 0.5, 0.75]
    with pytest.raises(DataError) as error:
        dataset(content)
    assert_clean(error, tmp_path / "a.json", "between 0 and 1", "give 'bbox' in pixels")


def test_contents_are_counted(content, dataset):
    content["categories"].append({"id": 0, "name": "dog", "supercategory": "none"})
    content["images"].append({"id": 12, "file_name": "./a.png", "width": 40, "height": 30})
    content["annotations"] += [
        {"image_id": 12, "category_id": 3, "bbox": [0, 0, 9, 9]},
        {"image_id": 12, "category_id": 3, "bbox": [0, 0, 9, 9]},  # again
        {"image_id": 12, "category_id": 3, "bbox": [0, 0, 0, 9]},
        {"image_id": 12, "category_id": 3, "bbox": [0, 0, 9, 9], "iscrowd": 1},
        {"image_id": 11, "category_id": 3, "bbox": [], "segmentation": [[1, 1, 9, 1, 9, 9]]},
        {"image_id": 11, "category_id": 3, "bbox": [20, 10, 38, 28]},  # two corners
    ]
    dataset(content, bad_boxes="drop")
    content["images"][2]["width"] = None
    contents = dataset(content, bad_boxes="drop").contents
    assert contents == Contents(
        images=4,
        boxes=7,
        classes=4,
        empty_images=1,
        crowds=1,
        bad_boxes=1,
        areas=9,
        polygons=1,
        sizes=1,
        annotation_ids=9,
        clipped=1,
        renamed=1,
        example=("./a.png", "a.png"),
        shared_files=1,
        repeated_boxes=1,
        corners=1,
        unused=("dog",),
        same_names=("dog",),
    )
    skipped = dataset(content, bad_boxes="drop", skip_empty=True).contents
    assert (skipped.images, skipped.boxes, skipped.empty_images) == (3, 7, 1)
    assert (skipped.sizes, skipped.skip_empty) == (0, True)  # of no image that is used


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


def test_sizes_are_compared_before_training_and_again_when_read(content, dataset, tmp_path):
    source = dataset(content)
    Image.new("RGB", (41, 30)).save(tmp_path / "images/a.png")
    with pytest.raises(DataError) as error:
        dataset(content)
    assert_clean(error, tmp_path / "images/a.png", "has 41 x 30 pixels", "says 40 x 30")
    with pytest.raises(DataError, match="has 41 x 30 pixels, but .* says 40 x 30"):
        source.read(0)


def test_images_to_skip_stay_in_the_dataset(dataset, content, tmp_path):
    skip = ImageReading(on_bad_image="skip")
    dataset(content)
    bad = tmp_path / "images" / "a.png"
    bad.write_bytes(bad.read_bytes()[:-20])
    data = dataset(content, reading=skip)
    assert [record.image_id for record in data.records] == [11, 7, 9]
    assert [file.file for file in data.bad] == [str(bad)]
    with pytest.raises(DataError, match=r"a\.png: image is truncated"):
        dataset(content)
    # Without its size, boxes in it cannot be checked.
    data_without = {**content, "images": [dict(entry) for entry in content["images"]]}
    del data_without["images"][0]["width"], data_without["images"][0]["height"]
    (tmp_path / "a.json").write_text(json.dumps(data_without))
    with pytest.raises(DataError, match=r"a\.png: image is truncated"):
        CocoDataset(tmp_path / "images", tmp_path / "a.json", reading=skip)
