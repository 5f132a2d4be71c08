"""The low-data protocol: sizes, golden ids, independence of the order of the file."""

from __future__ import annotations

import json
import random

import pytest

from data import subset
from data.coco_json import load_coco


def dataset(images=200, seed=0):
    """Ids with gaps, boxes in random order, some images without any."""
    generator = random.Random(seed)
    ids = generator.sample(range(1, 10 * images), images)
    entries = [{"id": i, "file_name": f"{i}.jpg", "height": 8, "width": 8} for i in ids]
    annotations = [
        {"id": n, "image_id": generator.choice(ids), "category_id": 7, "bbox": [0, 0, 2, 2]}
        for n in range(1, 2 * images)
    ]
    categories = [{"id": 7, "name": "dog"}, {"id": 9, "name": "never seen"}]
    info = {"year": 2020}
    return {
        "info": info,
        "images": entries,
        "annotations": annotations,
        "categories": categories,
    }


def test_golden_ids():
    """Written down once: any change here changes what users compare their results with."""
    assert subset.choose_ids(range(1, 301), 1, 0) == [101, 145, 287]
    assert subset.choose_ids(range(1, 101), 5, 3) == [30, 31, 46, 47, 80]


@pytest.mark.parametrize(
    ("count", "percent", "expected"),
    [
        (118287, 1, 1182),
        (118287, 5, 5914),
        (118287, 10, 11828),
        (117266, 10, 11726),
        (100, 29, 29),
        (1000, 32.3, 323),  # 322 if computed in floating point
        (1000, 0.5, 5),
        (200, 100, 200),
        (50, 1, 1),  # at least one
        (1, 1, 1),
    ],
)
def test_sizes(count, percent, expected):
    chosen = subset.choose_ids(range(count), percent, 0)
    assert len(chosen) == len(set(chosen)) == expected
    assert chosen == sorted(chosen)
    assert set(chosen) <= set(range(count))


def test_folds_and_percentages_differ():
    draws = {tuple(subset.choose_ids(range(1000), 1, fold)) for fold in range(5)}
    assert len(draws) == 5
    small = set(subset.choose_ids(range(1000), 1, 0))
    assert not small <= set(subset.choose_ids(range(1000), 5, 0))  # seeded by the percentage too


def test_choice_is_uniform():
    """Over many percentages the mean of the ids is the middle: no end is preferred."""
    means = []
    for tenth in range(50, 150):
        chosen = subset.choose_ids(range(1000), tenth / 10, tenth % 5)
        means.append(sum(chosen) / len(chosen))
    assert abs(sum(means) / len(means) - 499.5) < 15


def test_order_of_the_file_does_not_matter():
    content = dataset()
    shuffled = dict(content)
    for key in ("images", "annotations"):
        shuffled[key] = random.Random(1).sample(content[key], len(content[key]))
    assert shuffled["images"] != content["images"]
    assert subset.subset(content, 10, 2) == subset.subset(shuffled, 10, 2)


def test_all_annotations_of_the_chosen_images_and_no_other():
    content = dataset()
    before = json.dumps(content)
    part = subset.subset(content, 10, 1)
    chosen = {image["id"] for image in part["images"]}
    assert len(chosen) == 20
    for annotation in content["annotations"]:
        assert (annotation in part["annotations"]) == (annotation["image_id"] in chosen)
    assert all(image in content["images"] for image in part["images"])
    assert part["categories"] == content["categories"]
    assert part["info"] == content["info"]
    assert json.dumps(content) == before


def test_ids_of_all_kinds(tmp_path):
    """Text and numbers in one file; references that are written differently."""
    content = dataset(20)
    text = {image["id"]: f"photo {image['id']}" for image in content["images"][::2]}
    for image in content["images"]:
        image["id"] = text.get(image["id"], image["id"])
    for annotation in content["annotations"]:
        number = annotation["image_id"]
        annotation["image_id"] = text.get(number, f"{number:06d}")
    (tmp_path / "train.json").write_text(json.dumps(content))
    part = subset.subset(load_coco(tmp_path / "train.json"), 50, 0)
    ids = [image["id"] for image in part["images"]]
    assert len(ids) == 10
    assert {type(value) for value in ids} == {int, str}
    numbers = [value for value in ids if isinstance(value, int)]
    assert ids == sorted(numbers) + sorted(set(ids) - set(numbers))
    expected = sum(
        any(str(i).zfill(6) == a["image_id"] or i == a["image_id"] for i in ids)
        for a in content["annotations"]
    )
    assert len(part["annotations"]) == expected > 0
    (tmp_path / "part.json").write_text(json.dumps(part))
    assert load_coco(tmp_path / "part.json") == part


@pytest.mark.parametrize(
    ("percent", "fold"), [(0, 0), (101, 0), (float("nan"), 0), (1, 5), (1, -1)]
)
def test_out_of_range_is_refused(percent, fold):
    with pytest.raises(ValueError, match="; give a number"):
        subset.choose_ids(range(10), percent, fold)


def test_command_line(tmp_path, capsys):
    source = tmp_path / "train.json"
    source.write_text(json.dumps(dataset()))
    arguments = ["--annotations", str(source), "--percent", "10", "--fold", "0"]
    assert subset.main(arguments) == 0
    output = tmp_path / "train_10percent_fold0.json"
    part = load_coco(output)
    boxes = len(part["annotations"])
    assert capsys.readouterr().out == f"{output}: 20 of 200 images, {boxes} boxes\n"
    assert part == subset.subset(load_coco(source), 10, 0)
    first = output.read_bytes()
    output.unlink()
    assert subset.main(arguments) == 0
    assert output.read_bytes() == first
    assert subset.main([*arguments, "--output", str(tmp_path / "deep" / "x.json")]) == 0
    assert (tmp_path / "deep" / "x.json").read_bytes() == first


def test_default_names():
    names = [subset.default_output("a/train.json", p, f).as_posix() for p, f in ((1, 0), (0.5, 4))]
    assert names == ["a/train_1percent_fold0.json", "a/train_0.5percent_fold4.json"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--fold", "7"], "fold is 7"),
        (["--percent", "0"], "percent is 0"),
        (["--annotations", "missing.json"], "missing.json: no such file"),
        (["--output", "SOURCE"], "would overwrite the input"),
    ],
)
def test_command_line_errors_are_one_line(tmp_path, capsys, changes, message):
    source = tmp_path / "train.json"
    source.write_text(json.dumps(dataset(20)))
    changes = [str(source) if word == "SOURCE" else word for word in changes]
    arguments = ["--annotations", str(source), "--percent", "10", "--fold", "0", *changes]
    assert subset.main(arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error
    assert [path.name for path in tmp_path.iterdir()] == ["train.json"]


def test_file_without_images(tmp_path, capsys):
    source = tmp_path / "train.json"
    source.write_text(json.dumps({"images": [], "annotations": [], "categories": []}))
    assert subset.main(["--annotations", str(source), "--percent", "1", "--fold", "0"]) == 1
    assert "no image to choose from" in capsys.readouterr().err
