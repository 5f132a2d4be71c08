"""COCO average precision: by hand, at the ends of the scale, and from detections to entries."""

from __future__ import annotations

import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from aligndet.evaluate import AP_KEYS, average_precision, coco_results, evaluate
from data.coco import Categories, CocoDataset
from data.coco_json import load_coco
from data.loaders import eval_loader
from data.transforms import Augment
from data.views import DetectionDataset, collate_detection
from tests.helpers.coco_quirks import SAME, plain, write
from tests.helpers.oracle_detector import OracleDetector

BOXES = {1: [10.0, 10.0, 20.0, 20.0], 2: [50.0, 40.0, 60.0, 50.0]}  # xywh; 400 and 3000 px


def truth(*annotations):
    """Two images of 200 x 150; annotations are (image_id, category_id, bbox)."""
    return {
        "images": [{"id": i, "file_name": f"{i}.png", "height": 150, "width": 200} for i in (5, 9)],
        "annotations": [
            {"image_id": i, "category_id": c, "bbox": box} for i, c, box in annotations
        ],
        "categories": [{"id": 3, "name": "a"}, {"id": 7, "name": "b"}],
    }


def found(image_id, category_id, bbox, score):
    return {"image_id": image_id, "category_id": category_id, "bbox": bbox, "score": score}


BOTH = truth((5, 3, BOXES[1]), (9, 3, BOXES[2]))


def test_perfect_detections_score_100():
    results = [found(5, 3, BOXES[1], 0.9), found(9, 3, BOXES[2], 0.8)]
    assert average_precision(BOTH, results) == {
        "AP": pytest.approx(100.0),
        "AP50": pytest.approx(100.0),
        "AP75": pytest.approx(100.0),
        "APs": pytest.approx(100.0),
        "APm": pytest.approx(100.0),
        "APl": None,  # there is no object above 96 x 96 pixels
    }


def test_a_box_that_sticks_out_is_found_by_its_part_in_the_image():
    """Detections are clipped to the image, so that nothing else could find it."""
    labels = truth((5, 3, [-30, 10, 50, 20]), (9, 3, [150, 100, 100, 100]))
    results = [found(5, 3, [0, 10, 20, 20], 0.9), found(9, 3, [150, 100, 50, 50], 0.8)]
    assert average_precision(labels, results)["AP"] == pytest.approx(100.0)


def test_one_of_two_objects_found():
    """Precision is 1 up to recall 0.5: at 51 of COCO's 101 recall levels."""
    scores = average_precision(BOTH, [found(5, 3, BOXES[1], 0.9)])
    assert scores["AP50"] == pytest.approx(100 * 51 / 101)
    assert scores["APs"] == pytest.approx(100.0)
    assert scores["APm"] == 0.0


def test_a_false_alarm_that_scores_higher_halves_the_precision():
    alarm = found(5, 3, [100.0, 100.0, 20.0, 20.0], 0.95)
    results = [alarm, found(5, 3, BOXES[1], 0.9)]
    scores = average_precision(truth((5, 3, BOXES[1])), results)
    assert scores["AP"] == pytest.approx(50.0)


def test_overlap_decides_how_many_thresholds_are_passed():
    """Shifted by 4 of 20 pixels: IoU 16 / 24 = 0.67, above 0.5, 0.55, 0.6 and 0.65."""
    shifted = found(5, 3, [14.0, 10.0, 20.0, 20.0], 0.9)
    scores = average_precision(truth((5, 3, BOXES[1])), [shifted])
    assert scores["AP"] == pytest.approx(40.0)
    assert (scores["AP50"], scores["AP75"]) == (pytest.approx(100.0), 0.0)


def test_the_wrong_class_counts_as_missed():
    scores = average_precision(truth((5, 3, BOXES[1])), [found(5, 7, BOXES[1], 0.9)])
    assert scores["AP"] == 0.0


def test_the_mean_is_over_classes():
    both = truth((5, 3, BOXES[1]), (5, 7, BOXES[2]))
    assert average_precision(both, [found(5, 7, BOXES[2], 0.1)])["AP"] == pytest.approx(50.0)


def test_nothing_found_scores_0_and_nothing_there_is_none():
    """Size by size: there are small and medium objects, but no large one."""
    scores = average_precision(BOTH, [])
    assert scores == {"AP": 0, "AP50": 0, "AP75": 0, "APs": 0, "APm": 0, "APl": None}
    assert average_precision(truth(), []) == dict.fromkeys(AP_KEYS)
    assert average_precision(truth(), [found(5, 3, BOXES[1], 0.9)]) == dict.fromkeys(AP_KEYS)


def test_crowds_are_ignored():
    content = truth((5, 3, BOXES[1]), (9, 3, BOXES[2]))
    content["annotations"][1]["iscrowd"] = 1
    results = [found(5, 3, BOXES[1], 0.5), found(9, 3, [60.0, 50.0, 20.0, 20.0], 0.9)]
    assert average_precision(content, results)["AP"] == pytest.approx(100.0)
    content["annotations"][0]["iscrowd"] = 1
    assert average_precision(content, []) == dict.fromkeys(AP_KEYS)


def test_the_input_is_left_as_it_is():
    content, result = truth((5, 3, BOXES[1])), found(5, 3, BOXES[1], 0.9)
    average_precision(content, [result])
    assert content == truth((5, 3, BOXES[1]))
    assert result == found(5, 3, BOXES[1], 0.9)


def jittered(content):
    """Results that find the boxes of a loaded content roughly, each with its own score."""
    results = []
    for number, entry in enumerate(content["annotations"], start=1):
        x, y, w, h = entry["bbox"]
        box = [x + number, y, w - number, h]
        results.append(found(entry["image_id"], entry["category_id"], box, number / 10))
        results.append(found(entry["image_id"], entry["category_id"], [0, 0, 5, 5], number / 15))
    return results


def pycocotools_scores(path, results):
    """The six figures of the file as it is, by pycocotools itself."""
    truth = COCO(path)
    scorer = COCOeval(truth, truth.loadRes(results), "bbox")
    scorer.evaluate()
    scorer.accumulate()
    scorer.summarize()
    return [100 * value if value >= 0 else None for value in scorer.stats[:6].tolist()]


@pytest.mark.parametrize("name", list(SAME))
def test_what_can_be_loaded_can_be_scored(tmp_path, name):
    """Every way of writing the plain file gives what pycocotools gives for the plain file, and
    its own boxes score 100."""
    plain_file = write(tmp_path / "plain", plain())[1]
    expected = pycocotools_scores(plain_file, jittered(load_coco(plain_file)))
    content = plain()
    SAME[name](content)
    loaded = load_coco(write(tmp_path, content)[1])
    scores = average_precision(loaded, jittered(loaded))
    assert list(scores.values()) == pytest.approx(expected)
    perfect = [
        found(a["image_id"], a["category_id"], a["bbox"], 0.9) for a in loaded["annotations"]
    ]
    assert average_precision(loaded, perfect)["AP"] == pytest.approx(100.0)


def test_crowds_that_are_kept_are_scored_as_ordinary_boxes(tmp_path):
    content = plain()
    for entry in content["annotations"]:
        entry["iscrowd"] = 1
    path = write(tmp_path, content)[1]
    ignored, kept = load_coco(path), load_coco(path, crowd="keep")
    assert average_precision(ignored, jittered(ignored)) == dict.fromkeys(AP_KEYS)
    expected = pycocotools_scores(write(tmp_path / "plain", plain())[1], jittered(kept))
    assert list(average_precision(kept, jittered(kept)).values()) == pytest.approx(expected)


@pytest.mark.parametrize("bbox", [[], [5, 5, 0, 10], [5, 5, -3, 10], [64, 5, 9, 9], [-9, 5, 9, 9]])
def test_boxes_that_nothing_can_find_do_not_count(tmp_path, bbox):
    content = plain()
    content["annotations"].append(
        {"id": 4, "image_id": 1, "category_id": 3, "bbox": bbox, "area": 9.0, "iscrowd": 0}
    )
    folder, path = write(tmp_path, content)
    data = CocoDataset(folder, path, bad_boxes="drop")
    assert data.contents.bad_boxes == 1
    perfect = [
        found(r.image_id, data.categories.ids[k], [x1, y1, x2 - x1, y2 - y1], 0.9)
        for r in data.records
        for (x1, y1, x2, y2), k in zip(r.boxes.tolist(), r.labels.tolist(), strict=True)
    ]
    assert average_precision(load_coco(path), perfect)["AP"] == pytest.approx(100.0)


def test_objects_above_the_range_of_coco_count(tmp_path):
    """COCO's sizes end at 1e10 square pixels; whole-slide images have larger objects."""
    content = plain()
    content["images"][0].update(width=200_000, height=200_000)
    content["annotations"] = [
        {**content["annotations"][0], "bbox": [0, 0, 150_000, 150_000], "area": 2.25e10}
    ]
    loaded = load_coco(write(tmp_path, content)[1])
    perfect = [found(1, 7, [0, 0, 150_000, 150_000], 0.9)]
    scores = average_precision(loaded, perfect)
    assert scores["AP"] == scores["APl"] == pytest.approx(100.0)


def test_results_for_other_images_and_classes():
    with pytest.raises(ValueError, match="image_id 6, which the annotations do not list; give"):
        average_precision(BOTH, [found(6, 3, BOXES[1], 0.9)])
    alone = truth((5, 3, BOXES[1]))
    results = [found(5, 3, BOXES[1], 0.5), found(5, 99, BOXES[1], 0.9)]
    assert average_precision(alone, results)["AP"] == pytest.approx(100.0)


def test_detections_become_entries_in_pixels_of_the_files():
    detections = [
        {
            "boxes": torch.tensor([[8.0, 6.0, 24.0, 36.0], [0, 0, 96, 64]]),
            "scores": torch.tensor([0.75, 0.5]),
            "labels": torch.tensor([1, 0]),
        },
        {
            "boxes": torch.zeros(0, 4),
            "scores": torch.zeros(0),
            "labels": torch.zeros(0, dtype=torch.int64),
        },
    ]
    categories = Categories((3, 7), ("a", "b"))
    sizes = torch.tensor([[64, 96], [64, 80]])
    results = coco_results(detections, [5, 9], sizes, [(128, 288), (64, 80)], categories)
    assert results == [  # x scales by 3, y by 2
        {"image_id": 5, "category_id": 7, "bbox": [24.0, 12.0, 48.0, 60.0], "score": 0.75},
        {"image_id": 5, "category_id": 3, "bbox": [0.0, 0.0, 288.0, 128.0], "score": 0.5},
    ]


def test_perfect_detections_on_resized_images_score_100(dataset):
    """The whole way: resized images, categories 3 and 7, an image without boxes, a last batch that
    is smaller, annotations without area, iscrowd and id."""
    coco = CocoDataset(dataset / "val", dataset / "val.json")
    val = DetectionDataset(coco, Augment((32,), 48, flip=0.0))
    loader = eval_loader(val, coco.aspect_ratios, collate_detection, batch_size=2, workers=0)
    content = load_coco(dataset / "val.json")
    for entry in content["annotations"]:
        del entry["area"], entry["iscrowd"], entry["id"]
    model = OracleDetector(val).train()
    evaluation = evaluate(model, loader, content, coco.categories, torch.device("cpu"))
    assert evaluation.scores["AP"] == evaluation.scores["AP75"] == pytest.approx(100.0)
    assert evaluation.scores["APl"] is None
    assert evaluation.per_class == {"red": pytest.approx(100.0), "blue": pytest.approx(100.0)}
    assert evaluation.objects == {"red": 4, "blue": 3}
    ids = [image["id"] for image in content["images"]]
    found = [entry["image_id"] for entry in evaluation.detections]
    assert found == sorted(found, key=ids.index)
    assert len(found) == len(content["annotations"])
    assert model.training  # as it was before
