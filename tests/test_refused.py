"""The search for everything in a COCO JSON that a dataset refuses."""

from __future__ import annotations

import json
import random

import pytest

from aligndet import refused
from aligndet.refused import judge
from data.errors import DataError, DatasetError


class Picky:
    """A dataset that names only the first thing that it refuses, as real ones do."""

    def __init__(self, empty=True):
        self.empty, self.builds = empty, 0

    def __call__(self, path):
        self.builds += 1
        content = json.loads(path.read_text())
        images = {image["id"] for image in content["images"]}
        if len(images) < len(content["images"]):
            raise DataError(f"{path}: an id occurs twice")
        for image in content["images"]:
            if image.get("bad"):
                raise DataError(f"{path}: image {image['id']} is bad")
        for annotation in content["annotations"]:
            if annotation["image_id"] not in images:
                raise DataError(f"{path}: annotation {annotation['id']} has no image")
            if annotation.get("bad"):
                raise DataError(f"{path}: annotation {annotation['id']} is bad")
        if not content["images"] or not (self.empty or content["annotations"]):
            raise DataError(f"{path}: holds nothing")
        return content


def write(path, images, annotations):
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": []}))
    return path


@pytest.mark.parametrize("seed", range(8))
def test_all_faults_are_found_and_nothing_else(tmp_path, seed):
    draw = random.Random(seed)
    images = [{"id": n, "bad": draw.random() < 0.1} for n in range(draw.randint(1, 40))]
    annotations = [
        {
            "id": n,
            "image_id": draw.randrange(len(images) + 3),  # some are of no image
            "bad": draw.random() < 0.1,
        }
        for n in range(draw.randint(0, 80))
    ]
    path = write(tmp_path / "a.json", images, annotations)
    judged = judge(Picky(), Picky(), path)
    good = {image["id"] for image in images if not image["bad"]}
    kept = [a for a in annotations if a["image_id"] in good and not a["bad"]]
    # Annotations of refused images go with them, and are no problems of their own.
    expected = {f"{path}: image {image['id']} is bad" for image in images if image["bad"]}
    if good:
        expected |= {
            f"{path}: annotation {a['id']} is bad"
            for a in annotations
            if a["bad"] and a["image_id"] in good
        }
        expected |= {
            f"{path}: annotation {a['id']} has no image"
            for a in annotations
            if a["image_id"] >= len(images)
        }
    assert set(judged.problems) == (expected or set())
    if good:
        assert {image["id"] for image in judged.accepted["images"]} == good
        ids = sorted(a["id"] for a in judged.accepted["annotations"])
        assert ids == sorted(a["id"] for a in kept)
    else:
        assert judged.accepted is None


def test_few_builds_find_one_fault_among_many(tmp_path):
    images = [{"id": n, "bad": n == 700} for n in range(1024)]
    part = Picky()
    judged = judge(Picky(), part, write(tmp_path / "a.json", images, []))
    assert judged.problems == [f"{tmp_path}/a.json: image 700 is bad"]
    assert part.builds <= 2 * 10 + 2  # two halves of 10 levels, the whole, the image alone


def test_an_image_without_annotations_is_no_problem_in_a_part(tmp_path):
    images = [{"id": 1}, {"id": 2}]
    annotations = [{"id": 1, "image_id": 2, "bad": True}, {"id": 2, "image_id": 2}]
    path = write(tmp_path / "a.json", images, annotations)
    judged = judge(Picky(empty=False), Picky(), path)
    assert judged.problems == [f"{path}: annotation 1 is bad"]
    assert len(judged.accepted["images"]) == 2


def test_what_only_a_whole_file_needs_is_no_fault_of_a_part(tmp_path):
    """The dataset refuses files in which no annotation is usable."""

    def build(given):
        content = json.loads(given.read_text())
        for annotation in content["annotations"]:
            if annotation.get("bad"):
                raise DataError(f"{given}: annotation {annotation['id']} is bad")
        if content["annotations"] and all(a.get("crowd") for a in content["annotations"]):
            raise DatasetError(f"{given}: holds crowds only")
        return content

    images = [{"id": n} for n in range(8)]
    annotations = [{"id": n, "image_id": n, "crowd": n != 6, "bad": n == 3} for n in range(8)]
    path = write(tmp_path / "a.json", images, annotations)
    judged = judge(build, build, path)
    assert judged.problems == [f"{path}: annotation 3 is bad"]
    assert len(judged.accepted["images"]) == 8
    assert len(judged.accepted["annotations"]) == 7


def test_parts_that_do_not_go_together(tmp_path):
    path = write(tmp_path / "a.json", [{"id": 1}, {"id": 1}], [])
    judged = judge(Picky(), Picky(), path)
    assert judged.problems == [f"{path}: an id occurs twice"]
    assert judged.accepted is None


@pytest.mark.parametrize("text", ["{", "[]", '{"images": 3, "annotations": []}', "{}"])
def test_files_that_cannot_be_parted(tmp_path, text):
    path = tmp_path / "a.json"
    path.write_text(text)

    def build(given):
        raise DataError(f"{given}: not a COCO JSON")

    judged = judge(build, build, path)
    assert judged.problems == [f"{path}: not a COCO JSON"]
    assert judged.accepted is None


def test_the_search_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(refused, "MOST", 7)
    images = [{"id": n, "bad": True} for n in range(20)]
    judged = judge(Picky(), Picky(), write(tmp_path / "a.json", images, []))
    assert len(judged.problems) == 7
    assert not judged.complete


@pytest.mark.parametrize(("image_id", "stated"), [(1, "1"), ("1", 1), (1.0, 1), ("x", "x")])
def test_ids_of_another_type_are_the_same(tmp_path, image_id, stated):
    """Whether that is allowed is for the dataset to say; the annotation stays with its image."""
    images = [{"id": image_id}, {"id": "bad", "bad": True}]
    path = write(tmp_path / "a.json", images, [{"id": 1, "image_id": stated}])

    def build(given):
        content = json.loads(given.read_text())
        if any(image.get("bad") for image in content["images"]):
            raise DataError(f"{given}: bad")
        return content

    assert len(judge(build, build, path).accepted["annotations"]) == 1


def test_of_a_very_large_file_only_the_first_problem_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(refused, "LARGEST", 10)
    path = write(tmp_path / "a.json", [{"id": 1, "bad": True}, {"id": 2, "bad": True}], [])
    (problem,) = judge(Picky(), Picky(), path).problems
    assert problem.endswith("in a file of this size nothing more is looked for")
