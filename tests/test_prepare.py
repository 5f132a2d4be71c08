"""What a study's runs read: merged and moved proposals, label fractions."""

from __future__ import annotations

import json

import pytest

from data.coco_json import load_coco
from data.json_files import write_json_atomic
from experiments.prepare import (
    labels_file,
    make_labels,
    make_proposals,
    merged,
    moved,
    proposals_file,
    tune_file,
)
from experiments.study import DataSet, Start


def coco(images, boxes):
    """Images (id, name, width, height) and boxes (image id, xywh)."""
    return {
        "images": [
            {"id": i, "file_name": name, "width": w, "height": h} for i, name, w, h in images
        ],
        "annotations": [
            {"id": n, "image_id": i, "category_id": 1, "bbox": box}
            for n, (i, box) in enumerate(boxes, start=1)
        ],
        "categories": [{"id": 1, "name": "object"}],
    }


def test_merging_keeps_every_box_with_its_image():
    first = coco([(5, "x.jpg", 10, 10), (2, "y.jpg", 20, 10)], [(2, [0, 0, 5, 5])])
    second = coco([(5, "x.jpg", 30, 10)], [(5, [1, 1, 4, 4]), (5, [2, 2, 3, 3])])
    result = merged([("a/b", first), ("c", second)])
    names = {image["id"]: image["file_name"] for image in result["images"]}
    assert sorted(names) == [1, 2, 3]
    found = [(names[a["image_id"]], a["bbox"]) for a in result["annotations"]]
    assert found == [
        ("a/b/y.jpg", [0, 0, 5, 5]),
        ("c/x.jpg", [1, 1, 4, 4]),
        ("c/x.jpg", [2, 2, 3, 3]),
    ]
    assert len({a["id"] for a in result["annotations"]}) == 3


def test_moved_boxes_keep_their_size_and_spread_over_the_image():
    boxes = [(1, [3, 4, 20, 10])] * 400 + [(2, [0, 0, 100, 50])]
    before = coco([(1, "a.jpg", 100, 50), (2, "b.jpg", 100, 50)], boxes)
    after = moved(before)["annotations"]
    assert [a["image_id"] for a in after] == [i for i, _ in boxes]
    assert all(a["bbox"][2:] == b[2:] for a, (_, b) in zip(after, boxes, strict=True))
    x, y = zip(*(a["bbox"][:2] for a in after[:400]), strict=True)
    # Uniform on 0..80 and 0..40: the mean of 400 draws is off by 1.2 and 0.6 (one sigma).
    assert (min(x), max(x)) == (pytest.approx(0, abs=2), pytest.approx(80, abs=2))
    assert (sum(x) / 400, sum(y) / 400) == (pytest.approx(40, abs=5), pytest.approx(20, abs=2.5))
    assert max(y) <= 40
    assert after[400]["bbox"] == [0, 0, 100, 50]  # as large as its image: there is one place
    assert before["annotations"][0]["bbox"] == [3, 4, 20, 10]
    assert moved(before)["annotations"] == after


@pytest.fixture
def data():
    return DataSet("set/images", "set/train.json", "set/val", "set/val.json", ("more",))


def made(root, work, data, split="val", **start):
    """The proposals of a start."""
    start = Start("a start", **start)
    make_proposals(root, work, data, start, split)
    return load_coco(proposals_file(work, data, start, split))


def test_the_file_of_all_photographs_is_made_of_the_searched_folders(tmp_path, data):
    """Folders that have been searched, here both, are not searched again."""
    root, work = tmp_path / "data", tmp_path / "work"
    for name, image in (("set_images", "x.jpg"), ("more", "y.jpg")):
        one = coco([(1, image, 100, 100)], [(1, [0, 0, 10, 10])])
        write_json_atomic(one, work / "searched" / f"{name}.json")
    search, placed = (made(root, work, data, proposals=kind) for kind in ("search", "random"))
    for result in (search, placed):
        assert [i["file_name"] for i in result["images"]] == ["set/images/x.jpg", "more/y.jpg"]
    assert [a["bbox"] for a in search["annotations"]] == [[0, 0, 10, 10]] * 2
    assert all(a["bbox"][:2] != [0, 0] for a in placed["annotations"])


def test_own_photographs_are_repeated_until_they_are_half(tmp_path, data):
    root, work = tmp_path / "data", tmp_path / "work"
    for name, count in (("set_images", 2), ("more", 5)):
        images = [(i, f"{i}.jpg", 100, 100) for i in range(1, count + 1)]
        content = coco(images, [(i, [i, 0, 10, 10]) for i, *_ in images])
        write_json_atomic(content, work / "searched" / f"{name}.json")
    plain, repeated = (made(root, work, data, own_half=value) for value in (False, True))
    names = [image["file_name"] for image in repeated["images"]]
    assert len(plain["images"]) == 7
    # 2.5 times would be half of all; the even number is the nearest.
    others = [f"more/{i}.jpg" for i in range(1, 6)]
    assert names == 2 * ["set/images/1.jpg", "set/images/2.jpg"] + others
    assert len({image["id"] for image in repeated["images"]}) == 9
    boxes = [(names[a["image_id"] - 1], a["bbox"][0]) for a in repeated["annotations"]]
    assert boxes == [(name, int(name[-5])) for name in names]


def test_masks_of_one_folder_are_named_from_the_root_too(tmp_path, data):
    """A folder beside it, such as that of validation, may hold files of the same names."""
    root, work = tmp_path / "data", tmp_path / "work"
    one = coco([(1, "x.jpg", 100, 100)], [(1, [0, 0, 10, 10])])
    write_json_atomic(one, work / "searched" / "set_images_masks.json")
    result = made(root, work, data, proposals="masks", unlabelled=False)
    assert [i["file_name"] for i in result["images"]] == ["set/images/x.jpg"]


def test_each_seed_has_its_own_fold_of_the_labels(tmp_path, data):
    root, work = tmp_path / "data", tmp_path / "work"
    images = [(i, f"{i}.jpg", 10, 10) for i in range(1, 41)]
    whole = coco(images, [(i, [0, 0, 5, 5]) for i, *_ in images])
    write_json_atomic(whole, root / "set/train.json")
    assert labels_file(root, work, data, 100, 1, "val") == root / "set/train.json"
    chosen = []
    for seed in (1, 2, 6):
        make_labels(root, work, data, 10, seed, "val")
        part = load_coco(labels_file(root, work, data, 10, seed, "val"))
        chosen.append(sorted(image["id"] for image in part["images"]))
        assert sorted(a["image_id"] for a in part["annotations"]) == chosen[-1]
    assert [len(ids) for ids in chosen] == [4, 4, 4]
    assert chosen[0] != chosen[1]
    assert chosen[0] == chosen[2]  # there are five folds
    assert json.loads((root / "set/train.json").read_text()) == whole


@pytest.fixture
def hundred(tmp_path, data):
    """A hundred photographs, all labelled and searched, and one more without a label."""
    root, work = tmp_path / "data", tmp_path / "work"
    images = [(i, f"{i}.jpg", 10, 10) for i in range(1, 101)]
    labelled = coco(images, [(i, [1, 1, 5, 5]) for i, *_ in images])
    write_json_atomic(labelled, root / "set/train.json")
    searched = coco(images, [(i, [0, 0, 9, 9]) for i, *_ in images])
    write_json_atomic(searched, work / "searched" / "set_images.json")
    other = coco([(1, "y.jpg", 10, 10)], [(1, [0, 0, 9, 9])])
    write_json_atomic(other, work / "searched" / "more.json")
    return root, work, data


def names(content):
    return {image["file_name"].split("/")[-1] for image in content["images"]}


def test_the_part_for_choices_is_seen_by_neither_stage(hundred):
    root, work, data = hundred
    make_labels(root, work, data, 100, 0, "tune")
    labels = load_coco(labels_file(root, work, data, 100, 0, "tune"))
    aside = load_coco(tune_file(work, data))
    assert 10 < len(aside["images"]) < 30
    assert names(aside) | names(labels) == {f"{i}.jpg" for i in range(1, 101)}
    assert not names(aside) & names(labels)
    for content in (aside, labels):
        assert len(content["annotations"]) == len(content["images"])
    assert names(made(root, work, data, "tune")) == names(labels) | {"y.jpg"}
    assert names(made(root, work, data)) == names(labels) | names(aside) | {"y.jpg"}
    make_labels(root, work, data, 10, 0, "tune")
    tenth = load_coco(labels_file(root, work, data, 10, 0, "tune"))
    assert names(tenth) < names(labels)
    assert len(tenth["images"]) == len(labels["images"]) // 10


def test_labelled_boxes_as_proposals(hundred):
    """Of photographs that have none, they are searched."""
    boxes = made(*hundred, proposals="labels")["annotations"]
    assert [a["bbox"] for a in boxes] == [[1, 1, 5, 5]] * 100 + [[0, 0, 9, 9]]
    alone = made(*hundred, proposals="labels", unlabelled=False)
    assert len(alone["images"]) == len(alone["annotations"]) == 100
