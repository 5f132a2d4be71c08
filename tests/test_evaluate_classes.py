"""AP per class against pycocotools run class by class, results files, and the table."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import random

import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from aligndet.evaluate import Evaluation, average_precision, class_table, score

NAMES = {9: "a", 2: "b", 5: "c", 4: "never there", 7: "only crowds"}


def random_truth(seed):
    """Ten images with up to six boxes of three classes, and a class that has only crowds."""
    rng = random.Random(seed)
    annotations = []
    for image in range(10):
        for _ in range(rng.randrange(6)):
            category = rng.choice([9, 2, 5, 7])
            box = [rng.uniform(0, 100), rng.uniform(0, 100), rng.uniform(5, 90), rng.uniform(5, 90)]
            crowd = int(category == 7 or rng.random() < 0.1)
            annotations.append({
                "id": len(annotations) + 1, "image_id": 30 - image, "category_id": category,
                "bbox": box, "area": box[2] * box[3], "iscrowd": crowd,
            })  # fmt: skip
    return {
        "images": [
            {"id": 30 - i, "file_name": f"{i}.png", "width": 200, "height": 200} for i in range(10)
        ],
        "annotations": annotations,
        "categories": [{"id": i, "name": name} for i, name in NAMES.items()],
    }


def random_results(truth, seed):
    """Most objects, moved a little, some under a wrong class, and as many boxes at random."""
    rng = random.Random(seed)
    results = []
    for entry in truth["annotations"]:
        if rng.random() < 0.8:
            box = [value + rng.uniform(-4, 4) for value in entry["bbox"]]
            category = entry["category_id"] if rng.random() < 0.8 else rng.choice(list(NAMES))
            results.append((entry["image_id"], category, box))
        box = [rng.uniform(0, 100), rng.uniform(0, 100), rng.uniform(5, 90), rng.uniform(5, 90)]
        results.append((rng.randrange(21, 31), rng.choice(list(NAMES)), box))
    return [
        {"image_id": image, "category_id": category, "bbox": box, "score": rng.random()}
        for image, category, box in results
    ]


def precision_of_one_class(truth, results, category):
    """COCO's AP in percent if there were only this class; -100 without objects."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = copy.deepcopy(truth)
        coco.createIndex()
        scorer = COCOeval(coco, coco.loadRes(copy.deepcopy(results)), "bbox")
        scorer.params.catIds = [category]
        scorer.evaluate()
        scorer.accumulate()
        scorer.summarize()
    return 100 * scorer.stats[0]


@pytest.mark.parametrize("seed", range(3))
def test_classes_score_as_if_each_were_alone(seed):
    truth = random_truth(seed)
    results = random_results(truth, seed)
    evaluation = score(truth, results)
    assert list(evaluation.per_class) == [NAMES[i] for i in sorted(NAMES)]
    for category, name in NAMES.items():
        alone = precision_of_one_class(truth, results, category)
        expected = pytest.approx(alone) if alone >= 0 else None
        assert evaluation.per_class[name] == expected, name
        own = [a for a in truth["annotations"] if a["category_id"] == category]
        assert evaluation.objects[name] == sum(not a["iscrowd"] for a in own)
    assert evaluation.per_class["never there"] is evaluation.per_class["only crowds"] is None
    scored = [ap for ap in evaluation.per_class.values() if ap is not None]
    assert len(scored) == 3
    assert evaluation.scores["AP"] == pytest.approx(sum(scored) / 3)
    assert average_precision(truth, results) == evaluation.scores
    assert evaluation.detections == results


def test_detections_are_a_results_file(tmp_path):
    """`loadRes` takes them, and the AP of the file is the one that was reported."""
    truth = random_truth(3)
    evaluation = score(truth, random_results(truth, 3))
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    (tmp_path / "detections.json").write_text(json.dumps(evaluation.detections))
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(tmp_path / "truth.json"))
        scorer = COCOeval(coco, coco.loadRes(str(tmp_path / "detections.json")), "bbox")
        scorer.evaluate()
        scorer.accumulate()
        scorer.summarize()
    assert evaluation.scores["AP"] == pytest.approx(100 * scorer.stats[0])
    assert evaluation.scores["APm"] == pytest.approx(100 * scorer.stats[4])


def test_classes_of_one_name_are_told_apart_by_their_ids():
    truth = random_truth(4)
    for category in truth["categories"]:
        category["name"] = {9: "fish", 2: "fish", 5: 5}.get(category["id"], category["name"])
    names = list(score(truth, []).per_class)
    assert names == ["fish (id 2)", "never there", "5", "only crowds", "fish (id 9)"]


def test_table_by_hand():
    per_class = {"penguin": 3.14, "ray": 60.0, "two\nlines": None, "shark": 7.0}
    objects = {"penguin": 12, "ray": 3456, "two\nlines": 0, "shark": 1}
    assert class_table(Evaluation({}, per_class, objects, [])).splitlines() == [
        "    AP   boxes  class",
        "   3.1      12  penguin",
        "   7.0       1  shark",
        "  60.0   3,456  ray",
        "without a box to find, and so without AP: 1 class",
    ]


def test_table_of_many_classes_ends_with_a_remark():
    per_class = {f"class {i}": float(99 - i) for i in range(80)} | {"x": None, "y": None}
    objects = dict.fromkeys(per_class, 2)
    lines = class_table(Evaluation({}, per_class, objects, [])).splitlines()
    assert len(lines) == 23
    assert lines[1].split() == ["20.0", "2", "class", "79"]
    assert lines[-2] == "and 60 classes more, with AP from 40.0 to 99.0"
    assert lines[-1] == "without a box to find, and so without AP: 2 classes"


def test_table_without_any_object():
    lines = class_table(Evaluation({}, {"a": None}, {"a": 0}, [])).splitlines()
    assert lines == ["without a box to find, and so without AP: 1 class"]
