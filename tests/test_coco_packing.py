"""A packed COCO file says what `load_coco` reads from the JSON, or is refused in the same words."""

from __future__ import annotations

import copy
import io
import json
import random
from collections import Counter

import numpy as np
import pytest

from data import box_columns, coco_packing, json_stream, packed_coco
from data.coco_json import load_coco, read_coco
from data.coco_packing import pack_coco
from data.errors import DataError
from data.packed_coco import PackedCoco
from data.packed_file import Packed
from tests.helpers.coco_quirks import SAME, each, one, plain, without

IMAGE_FIELDS = ("id", "file_name", "height", "width")
BOX_FIELDS = ("id", "image_id", "category_id", "bbox", "area", "iscrowd")


@pytest.fixture(autouse=True, params=["at once", "in small parts"])
def parts(request, monkeypatch):
    if request.param == "in small parts":
        monkeypatch.setattr(json_stream, "BLOCK", 256)
        monkeypatch.setattr(json_stream, "WINDOW", 100)
        monkeypatch.setattr(box_columns, "ROWS", 3)
        monkeypatch.setattr(box_columns, "IN_MEMORY", 64)
        monkeypatch.setattr(packed_coco, "BLOCK", 3)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a.json"


def packed(path):
    file = io.BytesIO()
    pack_coco(path, file)
    return PackedCoco(Packed(file.getvalue()))


def assert_same(path):
    """Compare with `load_coco`, whose order of annotations is that of the file."""
    expected, mended = read_coco(path)
    coco = packed(path)
    found = coco.as_dict()
    place = {entry["id"]: number for number, entry in enumerate(expected["images"])}
    images = [{k: entry[k] for k in IMAGE_FIELDS} for entry in expected["images"]]
    boxes = [{k: entry[k] for k in BOX_FIELDS} for entry in expected["annotations"]]
    boxes.sort(key=lambda entry: place[entry["image_id"]])
    assert found["images"] == images
    assert found["annotations"] == boxes
    assert found["info"] == expected.get("info")
    listed = {entry["id"]: str(entry["name"]) for entry in expected["categories"]}
    assert dict(zip(coco.category_ids, coco.category_names, strict=True)) == listed
    assert +coco.mended == +mended
    keys = [(b["image_id"], b["category_id"], *b["bbox"]) for b in boxes]
    ordinary = [k for k, b in zip(keys, boxes, strict=True) if not b["iscrowd"]]
    repeated = {"all": len(keys) - len(set(keys)), "ordinary": len(ordinary) - len(set(ordinary))}
    assert coco.repeated == repeated
    crowds = sum(b["iscrowd"] for b in boxes)
    assert coco.crowds() == crowds
    kept, _ = read_coco(path, crowd="keep")
    flags = [entry["iscrowd"] for entry in coco.as_dict(keep_crowd=True)["annotations"]]
    assert flags == [entry["iscrowd"] for entry in kept["annotations"]] == [0] * len(boxes)
    with_boxes = {entry["image_id"] for entry in boxes}
    assert coco.images_with_boxes(True).tolist() == sorted(place[i] for i in with_boxes)
    with_ordinary = {entry["image_id"] for entry in boxes if not entry["iscrowd"]}
    assert coco.images_with_boxes(False).tolist() == sorted(place[i] for i in with_ordinary)
    runs = list(coco.blocks())
    assert [i for run in runs for i in range(run.start, run.stop)] == list(range(len(images)))


@pytest.mark.parametrize("name", list(SAME))
def test_quirks_of_tools(path, name):
    content = plain()
    SAME[name](content)
    path.write_text(json.dumps(content))
    assert_same(path)


def test_ids_of_annotations_from_tables_stay(path):
    content = plain()
    for entry, number in zip(content["annotations"], (5.0, 9.0, 7), strict=True):
        entry["id"] = number
    path.write_text(json.dumps(content))
    assert_same(path)
    ids = [entry["id"] for entry in packed(path).as_dict()["annotations"]]
    assert sorted(ids) == [5, 7, 9]


@pytest.mark.parametrize("seed", range(30))
def test_any_file(path, seed):
    rng = random.Random(seed)
    ids = rng.sample(range(-50, 10**6), 9)
    if seed % 3 == 1:
        ids[4] = "four"
    if seed % 7 == 2:
        ids[5] = 2**70
    content = {
        "images": [
            {"id": i, "file_name": f"{i}.png", "width": rng.choice([640, None]), "height": 480}
            for i in ids
        ],
        "categories": [{"id": i, "name": f"c{i}"} for i in (7, 3, 90)],
        "annotations": [random_annotation(rng, number, ids) for number in range(40)],
        "info": {"year": seed},
        "licenses": [{"id": 1}],
    }
    if seed % 5 == 0:
        content["annotations"].sort(key=lambda entry: ids.index(entry["image_id"]))
    if seed % 4 == 1:
        content["annotations"][7]["id"] = rng.choice([0, "x"])  # 0 is there already
    if seed % 4 == 2:
        content["annotations"] = []
    keys = rng.sample(list(content), len(content))
    path.write_text(json.dumps({key: content[key] for key in keys}))
    assert_same(path)


def random_annotation(rng, number, ids):
    numbers = rng.choice(
        [lambda: rng.randint(-9, 900), lambda: rng.randint(0, 90_000) / 100, rng.random]
    )
    bbox = [numbers() for _ in range(4)] if rng.random() < 0.7 else [1, 2, 30.5, 40]
    entry = {"id": number, "image_id": rng.choice(ids), "category_id": rng.choice([7, 3, 90])}
    entry |= {"bbox": bbox, "area": rng.choice([5, 7.25, 1e9 / 3, None, bbox[2] * bbox[3]])}
    return entry | rng.choice([{}, {"iscrowd": 0}, {"iscrowd": 1}, {"ignore": True}])


def test_ids_that_are_1_to_n_and_areas_of_boxes_take_no_room(path):
    content = plain()
    path.write_text(json.dumps(content))
    assert_same(path)
    coco = packed(path)
    assert "areas" not in coco.packed
    assert "crowd" not in coco.packed
    content["annotations"].sort(key=lambda entry: entry["image_id"])
    each("annotations", id=lambda number: number)(content)
    for number, entry in enumerate(content["annotations"], start=1):
        entry["id"] = number
    path.write_text(json.dumps(content))
    assert_same(path)
    assert "box_ids" not in packed(path).packed


WRONG = {
    "unlisted image": one("annotations", image_id=99),
    "unlisted image, no id": lambda c: (
        c["annotations"][1].update(image_id=5) or c["annotations"][1].pop("id")
    ),
    "unlisted category": one("annotations", category_id="x"),
    "no image": without("annotations", "image_id"),
    "half an image": each("annotations", image_id=1.5),
    "bbox of text": each("annotations", bbox=["a"] * 4),
    "short bbox": one("annotations", bbox=[1, 2, 3]),
    "infinite bbox": one("annotations", bbox=[1, 2, 3, float("inf")]),
    "huge bbox": one("annotations", bbox=[1, 2, 3, 10**400]),
    "odd flag": one("annotations", iscrowd=3),
    "not an object": lambda c: c["annotations"].append(7),
    "no list of images": lambda c: c.pop("images"),
    "images are no list": lambda c: c.update(images={"id": 1}),
    "annotations are no list": lambda c: c.update(annotations=None),
    "no categories": lambda c: c.pop("categories"),
    "image without name": without("images", "file_name"),
    "image id twice": each("images", id=1),
    "category without name": without("categories", "name"),
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("backwards", [False, True])
def test_what_cannot_be_read_is_said_in_the_same_words(path, name, backwards):
    content = plain()
    WRONG[name](content)
    keys = list(content)[:: -1 if backwards else 1]
    path.write_text(json.dumps({key: content[key] for key in keys}))
    with pytest.raises(DataError) as theirs:
        load_coco(path)
    with pytest.raises(DataError) as ours:
        packed(path)
    assert str(ours.value) == str(theirs.value)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "7", '[{"image_id": 1, "bbox": [], "score": 1}]', '{"images": [}', "{", "null"],
)
def test_other_files(path, text):
    path.write_text(text)
    with pytest.raises(DataError) as theirs:
        load_coco(path)
    with pytest.raises(DataError) as ours:
        packed(path)
    assert str(ours.value) == str(theirs.value)


def test_a_missing_file(path):
    with pytest.raises(DataError, match="no such file; give the path of a COCO JSON"):
        packed(path)


def test_of_a_list_that_occurs_twice_the_last_one_counts(path):
    first, second = plain(), plain()
    second["annotations"] = second["annotations"][:1]
    text = json.dumps(first)[:-1] + ", " + json.dumps(second)[1:]
    path.write_text(text)
    assert_same(path)
    second["annotations"][0]["image_id"] = 77
    path.write_text(json.dumps(first)[:-1] + ", " + json.dumps(second)[1:])
    with pytest.raises(DataError, match="annotation 1 has image_id 77"):
        packed(path)


def test_plain_annotations_do_not_go_one_by_one(path, monkeypatch):
    """The quick way and the careful one agree, and the quick one is taken."""
    content = plain()
    values = coco_packing.plain_values(copy.deepcopy(content["annotations"]))
    careful = coco_packing.odd_values(path, content["annotations"], Counter())
    assert values is not None
    for ours, theirs in zip(values, careful, strict=True):
        assert np.array_equal(ours, theirs)


def test_a_file_of_another_version_is_refused(path, monkeypatch):
    path.write_text(json.dumps(plain()))
    monkeypatch.setattr(coco_packing, "VERSION", 0)
    with pytest.raises(DataError, match="was packed by another version"):
        packed(path)
