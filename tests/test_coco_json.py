"""COCO JSON is brought into one form; what cannot be read is named with its remedy."""

from __future__ import annotations

import copy
import json

import pytest

from data.coco_json import load_coco, read_coco, read_image_list
from data.errors import DataError
from tests.helpers.assertions import assert_clean
from tests.helpers.coco_quirks import PLAIN, SAME, each, one, plain


@pytest.fixture
def read(tmp_path):
    """A function that writes a content to a file and reads it."""

    def call(content, function=load_coco, **options):
        (tmp_path / "a.json").write_text(json.dumps(content))
        return function(tmp_path / "a.json", **options)

    return call


def one_form(content):
    """What any reader may rely on, as plain checks."""
    ids = {key: [entry["id"] for entry in content[key]] for key in ("images", "categories")}
    for listed in ids.values():
        assert len(set(listed)) == len(listed)
        assert all(type(value) in (int, str) for value in listed)
    numbers = [entry["id"] for entry in content["annotations"]]
    assert len(set(numbers)) == len(numbers)
    assert {type(number) for number in numbers} <= {int}
    for entry in content["images"]:
        sizes = entry["width"], entry["height"]
        assert sizes == (None, None) or all(type(s) is int and s > 0 for s in sizes)
    for entry in content["annotations"]:
        assert entry["image_id"] in ids["images"]
        assert type(entry["image_id"]) in (int, str)
        assert type(entry["category_id"]) in (int, str)
        assert entry["category_id"] in ids["categories"]
        assert all(abs(value) < float("inf") for value in entry["bbox"])
        assert len(entry["bbox"]) == 4
        assert type(entry["iscrowd"]) is int
        assert entry["iscrowd"] in (0, 1)
        assert type(entry["area"]) is float
        assert 0 <= entry["area"] < float("inf")


@pytest.mark.parametrize("name", list(SAME))
def test_quirks_are_read_into_one_form(read, name):
    content = plain()
    SAME[name](content)
    loaded = read(content)
    one_form(loaded)
    assert [a["bbox"] for a in loaded["annotations"]] == [a["bbox"] for a in PLAIN["annotations"]]
    assert [a["area"] for a in loaded["annotations"]] == [400, 1360, 600]
    assert [a["iscrowd"] for a in loaded["annotations"]] == [0, 0, 0]
    again = read(copy.deepcopy(loaded))
    assert again == loaded  # nothing is left to correct


def test_a_plain_file_stays_as_it_is(read):
    content = plain() | {"info": {"year": 2020}}
    content["annotations"][0] |= {"segmentation": [[1, 2, 3, 4, 5, 6]], "area": 250.5}
    loaded, mended = read(content, read_coco)
    assert loaded == content
    assert not any(mended.values())


@pytest.mark.parametrize(
    ("change", "counted"),
    [
        (each("annotations", area=None), {"areas": 3}),
        (one("annotations", area="400"), {}),  # a number all the same
        (one("annotations", bbox=None, segmentation=[[1, 2, 21, 2, 11, 22]]), {"polygons": 1}),
        (each("annotations", id=5), {"annotation_ids": 3}),
        (SAME["an image listed twice"], {"repeated_entries": 1}),
        (SAME["a class listed twice"], {"repeated_entries": 1}),
    ],
)
def test_what_is_corrected_is_counted(read, change, counted):
    content = plain()
    change(content)
    assert +read(content, read_coco)[1] == counted


@pytest.mark.parametrize("mark", [1, "1", True, "true", 1.0, "1.0"])
@pytest.mark.parametrize("field", ["iscrowd", "ignore"])
def test_crowds(read, field, mark):
    content = plain()
    content["annotations"][1][field] = mark
    assert [a["iscrowd"] for a in read(content)["annotations"]] == [0, 1, 0]
    kept, mended = read(content, read_coco, crowd="keep")
    assert [a["iscrowd"] for a in kept["annotations"]] == [0, 0, 0]
    assert +mended == {"kept_crowds": 1}


def test_crowd_is_one_of_two(read):
    with pytest.raises(ValueError, match="crowd is 'drop'; set it to ignore or keep"):
        read(plain(), crowd="drop")


@pytest.mark.parametrize("bbox", [None, [], "", [0, 0, 0, 0]])
@pytest.mark.parametrize(
    "segmentation",
    [
        None,
        [],
        [[]],
        [[1, 2]],
        [[1, 2, 3]],
        [["x"] * 6],
        "ab",
        {"size": [48, 64], "counts": [0, 9]},
    ],
)
def test_no_box_and_no_polygon_is_a_box_without_area(read, bbox, segmentation):
    content = plain()
    content["annotations"][0].update(bbox=bbox, segmentation=segmentation)
    loaded = read(content)
    one_form(loaded)
    assert loaded["annotations"][0]["bbox"] == [0, 0, 0, 0]


def test_a_reference_that_fits_two_ids_is_not_guessed(read, tmp_path):
    content = plain()
    content["images"][0]["id"], content["images"][1]["id"] = "1", "01"
    content["annotations"] = [{**content["annotations"][0], "image_id": 1}]
    with pytest.raises(DataError) as error:
        read(content)
    assert_clean(error, tmp_path / "a.json", "annotation 1 has image_id 1", "add the image")
    content["annotations"][0]["image_id"] = "01"
    assert read(content)["annotations"][0]["image_id"] == "01"


@pytest.mark.parametrize("rest", [{}, {"categories": []}, {"annotations": None}])
def test_a_list_of_images_needs_no_labels(read, rest, tmp_path):
    entries = [
        {"id": 1.0, "file_name": "a.jpg", "width": 120.0, "height": 90},
        {"id": "x", "file_name": "b.jpg"},
    ]
    assert read({"images": entries, **rest}, read_image_list) == [
        {"id": 1, "file_name": "a.jpg", "width": 120, "height": 90},
        {"id": "x", "file_name": "b.jpg", "width": None, "height": None},
    ]
    with pytest.raises(DataError) as error:
        read({"images": [{"id": 1}]}, read_image_list)
    assert_clean(error, tmp_path / "a.json", "has no 'file_name'", "add it")


def drop(section, key):
    return lambda content: content[section][1].pop(key)


def put(section, key, value):
    return lambda content: content[section][1].update({key: value})


BIG = 10**400
# What is done to the file, and what the message must say: the defect, then the remedy.
DEFECTS = {
    "no images": (lambda c: c.pop("images"), "no list 'images'", "convert"),
    "no annotations": (lambda c: c.pop("annotations"), "no list 'annotations'", "convert"),
    "no categories": (lambda c: c.pop("categories"), "no list 'categories'", "convert"),
    "images no list": (lambda c: c.update(images={"1": {}}), "no list 'images'", "convert"),
    "entry no object": (lambda c: c["images"].append(5), "'images' has no 'id'", "add it"),
    "annotation no object": (lambda c: c["annotations"].append([]), "no 'image_id'", "add it"),
    "image id": (drop("images", "id"), "'images' has no 'id'", "add it"),
    "file name": (drop("images", "file_name"), "has no 'file_name'", "add it"),
    "its image": (drop("annotations", "image_id"), "has no 'image_id'", "add it"),
    "its class": (drop("annotations", "category_id"), "has no 'category_id'", "add it"),
    "category id": (drop("categories", "id"), "'categories' has no 'id'", "add it"),
    "category name": (drop("categories", "name"), "has no 'name'", "add it"),
    "list as name": (put("categories", "name", []), "'name' []", "correct it"),
    "blank as name": (put("categories", "name", " "), "'name' \" \"", "correct it"),
    "true as name": (put("categories", "name", True), "'name' true", "correct it"),
    "null as name": (put("categories", "name", None), "'name' null", "correct it"),
    "list as id": (put("images", "id", [1]), "'id' [1]", "correct it"),
    "true as id": (put("images", "id", True), "'id' true", "correct it"),
    "1.5 as id": (put("images", "id", 1.5), "'id' 1.5", "correct it"),
    "nan as id": (put("images", "id", float("nan")), "'id' NaN", "correct it"),
    "number as file": (put("images", "file_name", 7), "'file_name' 7", "correct it"),
    "blank as file": (put("images", "file_name", " "), "'file_name' \" \"", "correct it"),
    "list as image": (put("annotations", "image_id", [7]), "'image_id' [7]", "correct it"),
    "null class": (put("annotations", "category_id", None), "'category_id' null", "correct it"),
    "unknown image": (
        put("annotations", "image_id", 12),
        "annotation 2 has image_id 12",
        "add the image or remove",
    ),
    "huge image": (
        put("annotations", "image_id", BIG),
        "annotation 2 has image_id 1000",
        "add the image or remove",
    ),
    "unknown category": (
        put("annotations", "category_id", 4),
        "annotation 2 has category_id 4",
        "add the category or remove",
    ),
    "image twice": (put("images", "id", 1), "occurs twice in 'images'", "unique"),
    "category twice": (put("categories", "id", 7), "twice in 'categories'", "unique"),
    "annotation id null": (
        lambda c: c["annotations"].append({**c["annotations"].pop(), "id": None, "image_id": 9}),
        "annotation null has image_id 9",
        "add the image or remove",
    ),
    "no annotation id at all": (
        lambda c: c["annotations"].append({"image_id": 9, "category_id": 7, "bbox": []}),
        "annotation (without id) has image_id 9",
        "add the image or remove",
    ),
    "short box": (put("annotations", "bbox", [1, 2, 3]), "annotation 2 has bbox", "correct"),
    "box no list": (put("annotations", "bbox", {"x": 1}), "annotation 2 has bbox", "correct"),
    "list of text": (put("annotations", "bbox", "[1, 2, 3, 4]"), "annotation 2", "correct"),
    "words in box": (put("annotations", "bbox", [1, 2, "3 px", 4]), "annotation 2", "correct"),
    "true in box": (put("annotations", "bbox", [1, 2, True, 4]), "annotation 2", "correct"),
    "null in box": (put("annotations", "bbox", [None] * 4), "four finite", "correct"),
    "nan": (put("annotations", "bbox", [1, 2, float("nan"), 4]), "four finite", "correct"),
    "nan text": (put("annotations", "bbox", [1, 2, "nan", 4]), "four finite", "correct"),
    "infinite": (put("annotations", "bbox", [1, 2, float("inf"), 4]), "finite", "correct"),
    "400 digits": (put("annotations", "bbox", [1, 2, BIG, 4]), "four finite", "correct"),
    "1e308": (put("annotations", "bbox", [1e308, 2, 1e308, 4]), "four finite", "correct"),
    "iscrowd 2": (put("annotations", "iscrowd", 2), "iscrowd 2", "correct"),
    "iscrowd list": (put("annotations", "iscrowd", [0]), "iscrowd [0]", "correct"),
    "ignore words": (put("annotations", "ignore", "maybe"), 'ignore "maybe"', "correct"),
}


@pytest.mark.parametrize("name", list(DEFECTS))
def test_structural_defects_are_named(read, tmp_path, name):
    change, defect, remedy = DEFECTS[name]
    content = plain()
    change(content)
    with pytest.raises(DataError) as error:
        read(content)
    assert_clean(error, tmp_path / "a.json", defect, remedy)
    assert len(str(error.value)) < len(str(tmp_path)) + 300


LABELME = {
    "version": "5",
    "shapes": [{"label": "dog", "points": [[1, 2], [3, 4]]}],
    "imagePath": "a.jpg",
    "imageData": None,
}
VIA = {"a.jpg999": {"filename": "a.jpg", "size": 999, "regions": [], "file_attributes": {}}}
RESULT = {"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4]}


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (LABELME, "a labelme file"),
        (VIA, "a file of the VGG Image Annotator"),
        ({"_via_settings": {}, "_via_img_metadata": VIA}, "a project of the VGG Image Annotator"),
        ([{**RESULT, "score": 0.5}], "COCO results"),
        ([RESULT], "a list of annotations"),
        ([{"id": 1, "data": {"image": "a.jpg"}, "annotations": []}], "Label Studio's own JSON"),
        ({}, "it has nothing"),
        ({"a" * 100: 1}, "it has 'aaa"),
        ([], "its top level is not an object"),
        (None, "its top level is not an object"),
        (7, "its top level is not an object"),
    ],
)
@pytest.mark.parametrize("function", [load_coco, read_image_list])
def test_other_formats_are_named(read, tmp_path, content, kind, function):
    with pytest.raises(DataError) as error:
        read(content, function)
    assert_clean(error, tmp_path / "a.json", "not a COCO JSON", kind, "convert it first")
