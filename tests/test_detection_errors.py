"""Errors by kind: worked out by hand, and as TIDE's own package has them."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from tidecv import TIDE, Data

from aligndet.coco_scores import numbered, pycocotools_scores
from aligndet.detection_errors import confusions, detection_errors
from aligndet.error_costs import FALSE_NEGATIVES, FALSE_POSITIVES
from aligndet.error_kinds import KINDS

BOX = [10.0, 10, 20, 20]
AWAY = [60.0, 60, 20, 20]
HALF = [20.0, 10, 20, 20]  # IoU 1/3 with BOX
CAT, DOG = 5, 9
TIDE_NAMES = dict(zip(KINDS, ("Cls", "Loc", "Both", "Dupe", "Bkg", "Miss"), strict=True))


def content(objects, crowds=(), images=4):
    """Images 1, 2, ... of 100 px with the objects and crowd regions (image, category, box)."""
    entries = [(*one, 0) for one in objects] + [(*one, 1) for one in crowds]
    return {
        "images": [{"id": n + 1, "width": 100, "height": 100} for n in range(images)],
        "categories": [{"id": CAT, "name": "cat"}, {"id": DOG, "name": "dog"}],
        "annotations": [
            {"id": n, "image_id": i, "category_id": c, "bbox": b, "area": b[2] * b[3], "iscrowd": k}
            for n, (i, c, b, k) in enumerate(entries, 1)
        ],
    }


def result(image, category, box, score):
    return {"image_id": image, "category_id": category, "bbox": box, "score": score}


def kinds(found, objects, crowds=()):
    errors = detection_errors(content(objects, crowds), found)
    return [one.kind for of_image in errors.images.values() for one in of_image], errors


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ([(CAT, BOX)], ["right"]),
        ([(CAT, HALF)], ["location"]),
        ([(DOG, BOX)], ["class"]),
        ([(CAT, BOX), (CAT, BOX)], ["right", "duplicate"]),
        ([(CAT, BOX), (CAT, HALF)], ["right", "location"]),  # near a found object, but too far off
        ([(CAT, AWAY)], ["background", "missed"]),
        ([(DOG, HALF)], ["both", "missed"]),
        ([], ["missed"]),
    ],
)
def test_each_kind(found, expected):
    entries = [result(1, c, box, 0.9 - 0.1 * n) for n, (c, box) in enumerate(found)]
    assert kinds(entries, [(1, CAT, BOX)])[0] == expected


def test_costs_worked_out_by_hand():
    """Two cats: one is found, one is found too far off. Two dogs: the surest detection takes one
    for a cat, one is missed."""
    objects = [(1, CAT, BOX), (2, CAT, BOX), (3, DOG, BOX), (4, DOG, BOX)]
    found = [result(3, CAT, BOX, 0.9), result(1, CAT, BOX, 0.8), result(2, CAT, HALF, 0.7)]
    _, errors = kinds(found, objects)
    half = 51 / 101  # of the 101 recalls those up to 1/2
    cats = half / 2  # the cat comes second, after the dog
    assert errors.ap == pytest.approx(100 * cats / 2)
    assert errors.count == {**dict.fromkeys(KINDS, 0), "class": 1, "location": 1, "missed": 1}
    # Mended, the dog leaves the cats and is the first of two dogs.
    assert errors.cost["class"] == pytest.approx(100 * ((half + half) / 2 - cats / 2))
    # wrong, right, right: the best precision from the first recall on is 2/3.
    assert errors.cost["location"] == pytest.approx(100 * (2 / 3 / 2 - cats / 2))
    assert errors.cost["missed"] == 0  # no dog is found, with two to find or with one
    assert errors.cost[FALSE_POSITIVES] == pytest.approx(100 * (half / 2 - cats / 2))
    assert errors.cost["background"] == errors.cost["both"] == errors.cost["duplicate"] == 0


def test_the_surest_error_gets_the_object():
    """Both would be right if mended; the object goes to the first, and the second goes away."""
    found = [result(1, CAT, HALF, 0.9), result(1, DOG, BOX, 0.8)]
    names, errors = kinds(found, [(1, CAT, BOX)])
    assert names == ["location", "class"]
    assert errors.cost["location"] == pytest.approx(100)
    assert errors.cost["class"] == 0


def test_crowd_regions_count_neither_for_nor_against():
    names, errors = kinds(
        [result(1, CAT, AWAY, 0.9), result(1, DOG, AWAY, 0.8), result(1, CAT, BOX, 0.7)],
        [(1, CAT, BOX), (2, DOG, BOX)],
        crowds=[(1, CAT, [50, 50, 50, 50])],
    )
    assert names == ["background", "right", "missed"]  # the dog in the crowd of cats is one
    assert errors.ap == pytest.approx(50)


def test_who_is_taken_for_whom():
    objects = [(1, CAT, BOX), (2, CAT, BOX), (3, DOG, BOX), (4, DOG, BOX)]
    found = [result(1, DOG, BOX, 0.2), result(2, DOG, BOX, 0.4), result(3, CAT, BOX, 0.9)]
    pairs = confusions(kinds(found, objects)[1], {CAT: "cat", DOG: "dog"})
    assert pairs == [("dog", "cat", 1, 0.9), ("cat", "dog", 2, pytest.approx(0.3))]


def test_bad_input():
    with pytest.raises(ValueError, match="iou must be above 0.1"):
        detection_errors(content([]), [], iou=0.1)
    with pytest.raises(ValueError, match="image_id 9"):
        detection_errors(content([]), [result(9, CAT, BOX, 0.5)])
    with pytest.raises(ValueError, match="have no masks"):
        detection_errors(content([(1, CAT, BOX)]), [], masks=True)
    empty = detection_errors(content([]), [result(1, CAT, BOX, 0.5)])
    assert empty.ap is None
    assert empty.cost == {}
    assert empty.count["background"] == 1
    nothing = detection_errors(content([], images=0), [])
    assert (nothing.ap, nothing.cost, nothing.images) == (None, {}, {})


def rectangle(box):
    mask = np.zeros((100, 100), np.uint8, order="F")
    left, top, width, height = (round(value) for value in box)
    mask[top : top + height, left : left + width] = 1
    rle = coco_mask.encode(mask)
    return {"size": rle["size"], "counts": rle["counts"].decode()}


def random_problem(seed, masks):
    """Objects of two classes and detections near them, some in crowd regions, a few images empty;
    no two scores are alike, as in TIDE's package ties come in another order once mended."""
    random = np.random.default_rng(seed)
    objects, crowds, found = [], [], []
    for image in range(1, 13):
        places = random.uniform(5, 65, (random.integers(0, 5), 2))
        for place in places:
            box = [*place.tolist(), *random.uniform(15, 30, 2).tolist()]
            category = int(random.choice([CAT, DOG]))
            (crowds if random.random() < 0.1 else objects).append((image, category, box))
            for _ in range(random.integers(0, 4)):
                moved = np.asarray(box) + random.normal(0, 3, 4)
                category = category if random.random() < 0.7 else CAT + DOG - category
                found.append((image, category, moved.clip(1, 95).tolist()))
        for place in random.uniform(5, 65, (random.integers(0, 3), 2)):
            found.append((image, int(random.choice([CAT, DOG])), [*place.tolist(), 20.0, 20.0]))
    truth = content(objects, crowds, images=12)
    scores = random.permutation(len(found)) / len(found)
    results = [result(*one, float(score)) for one, score in zip(found, scores, strict=True)]
    for entry in truth["annotations"] + results if masks else ():
        entry["segmentation"] = rectangle(entry["bbox"])
    return truth, results


def by_tide(truth, results, iou, masks):
    wanted, found = Data("truth"), Data("found")
    for image in truth["images"]:
        wanted.add_image(image["id"], str(image["id"]))
    for entry in truth["annotations"]:
        add = wanted.add_ignore_region if entry["iscrowd"] else wanted.add_ground_truth
        add(entry["image_id"], entry["category_id"], entry["bbox"], entry.get("segmentation"))
    for entry in results:
        found.add_detection(
            *(entry[key] for key in ("image_id", "category_id", "score", "bbox")),
            entry.get("segmentation"),
        )
    tide = TIDE(mode=TIDE.MASK if masks else TIDE.BOX)
    run = tide.evaluate(wanted, found, pos_threshold=iou, name="run")
    cost = {error.short_name: value for error, value in run.fix_main_errors().items()}
    cost |= {error.short_name: value for error, value in run.fix_special_errors().items()}
    count = {error.short_name: value for error, value in run.count_errors().items()}
    return run.ap, cost, count


@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize("iou", [0.5, 0.75])
@pytest.mark.parametrize("seed", range(20))
def test_as_the_tide_package_has_it(seed, iou, masks):
    truth, results = random_problem(seed, masks)
    errors = detection_errors(truth, results, iou, masks)
    ap, cost, _ = by_tide(copy.deepcopy(truth), copy.deepcopy(results), iou, masks)
    assert errors.ap == pytest.approx(ap, abs=1e-9)
    for kind, name in TIDE_NAMES.items():
        assert errors.cost[kind] == pytest.approx(cost[name], abs=1e-9), kind
    assert errors.cost[FALSE_POSITIVES] == pytest.approx(cost["FalsePos"], abs=1e-9)
    assert errors.cost[FALSE_NEGATIVES] == pytest.approx(cost["FalseNeg"], abs=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_counts_without_crowds(seed):
    """TIDE's package counts what lies in crowd regions among the errors; without them, all counts
    agree."""
    truth, results = random_problem(seed, masks=False)
    truth["annotations"] = [entry for entry in truth["annotations"] if not entry["iscrowd"]]
    _, _, count = by_tide(copy.deepcopy(truth), copy.deepcopy(results), 0.5, False)
    errors = detection_errors(truth, results)
    assert {TIDE_NAMES[kind]: number for kind, number in errors.count.items()} == count
    assert min(errors.count[kind] for kind in ("class", "location", "background")) > 0


def test_ap_is_that_of_the_evaluation():
    truth, results = random_problem(3, masks=False)
    scores = pycocotools_scores(*numbered(truth, truth["annotations"], results), "bbox")
    assert detection_errors(truth, results, 0.5).ap == pytest.approx(scores.overall[1], abs=1e-9)
    assert detection_errors(truth, results, 0.75).ap == pytest.approx(scores.overall[2], abs=1e-9)
