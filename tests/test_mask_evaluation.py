"""AP by masks: against pycocotools itself, at the ends of the scale, and what is done with labels
that have no mask, or none that can be read."""

from __future__ import annotations

import contextlib
import copy
import io
import json

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from aligndet.evaluate import AP_KEYS, MASK_AP_KEYS, average_precision, score
from aligndet.mask_evaluation import NO_MASKS, read_mask
from data.coco_json import load_coco
from data.errors import DataError
from tests.helpers.run_lengths import compressed, uncompressed

HEIGHT, WIDTH = 150, 200
NAMES = {9: "a", 2: "b", 5: "never there"}


def ellipse(x, y, across, down):
    """(H, W) uint8; centre and radii."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    return ((((columns - x) / across) ** 2 + ((rows - y) / down) ** 2) <= 1).astype(np.uint8)


def box_of(mask):
    rows, columns = mask.nonzero()
    x, y = int(columns.min()), int(rows.min())
    return [x, y, int(columns.max()) + 1 - x, int(rows.max()) + 1 - y]


def polygon(x, y, across, down):
    angles = np.linspace(0, 2 * np.pi, 13)[:-1]
    points = np.stack([x + across * np.cos(angles), y + down * np.sin(angles)], axis=1)
    return points.clip(0, [WIDTH, HEIGHT]).ravel().tolist()


def annotation(number, image, category, segmentation, crowd=0):
    mask = segmentation
    if isinstance(mask, list):
        mask = coco_mask.merge(coco_mask.frPyObjects(mask, HEIGHT, WIDTH))
    elif isinstance(mask["counts"], list):
        mask = coco_mask.frPyObjects(mask, HEIGHT, WIDTH)
    return {
        "id": number, "image_id": image, "category_id": category, "iscrowd": crowd,
        "segmentation": segmentation, "area": float(coco_mask.area(mask)),
        "bbox": coco_mask.toBbox(mask).tolist(),
    }  # fmt: skip


def truth_of(annotations, images=(30, 40, 50)):
    return {
        "images": [
            {"id": i, "file_name": f"{i}.png", "width": WIDTH, "height": HEIGHT} for i in images
        ],
        "annotations": annotations,
        "categories": [{"id": i, "name": name} for i, name in NAMES.items()],
    }


def detection(image, category, mask, value):
    box = [float(side) for side in box_of(mask)]
    entry = {"image_id": image, "category_id": category, "bbox": box, "score": value}
    return entry | {"segmentation": compressed(mask)}


@pytest.fixture(scope="module")
def example():
    """Labels in every form, small to large, with crowds; results that find them more or less, and
    others by chance."""
    rng = np.random.default_rng(0)
    annotations, results = [], []
    for number in range(1, 41):
        x, y = rng.uniform(20, WIDTH - 20), rng.uniform(20, HEIGHT - 20)
        radii = rng.uniform(5, 70, 2)
        image, category = int(rng.choice([30, 40, 50])), int(rng.choice([9, 2]))
        mask = ellipse(x, y, *radii)
        form = [
            compressed(mask),
            uncompressed(mask),
            [polygon(x, y, *radii)],
            [polygon(x, y, *radii), polygon(x / 2, y, 8, 9)],
        ][number % 4]
        annotations.append(annotation(number, image, category, form, int(number % 9 == 0)))
        moved = ellipse(x + rng.normal(0, 2), y + rng.normal(0, 2), *radii * rng.uniform(0.85, 1.1))
        results.append(detection(image, category, moved, float(rng.random())))
        stray = ellipse(*rng.uniform(20, 130, 2), *rng.uniform(5, 30, 2))
        results.append(detection(image, category, stray, float(rng.random()) / 2))
    return truth_of(annotations), results


def by_pycocotools(truth, results, kind, category=None):
    """The six figures in percent of one class or all, without anything of ours."""
    results = copy.deepcopy(results)
    for entry in results if kind == "segm" else []:
        del entry["bbox"]
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = copy.deepcopy(truth)
        coco.createIndex()
        scorer = COCOeval(coco, coco.loadRes(results), kind)
        scorer.params.catIds = [category] if category else scorer.params.catIds
        scorer.evaluate()
        scorer.accumulate()
        scorer.summarize()
    return [100 * value if value >= 0 else None for value in scorer.stats[:6].tolist()]


def test_scores_are_those_of_pycocotools(example):
    truth, results = example
    before = copy.deepcopy(example)
    evaluation = score(truth, results)
    assert tuple(evaluation.scores) == AP_KEYS + MASK_AP_KEYS
    found = list(evaluation.scores.values())
    assert found[:6] == pytest.approx(by_pycocotools(truth, results, "bbox"))
    assert found[6:] == pytest.approx(by_pycocotools(truth, results, "segm"))
    assert None not in found
    assert len({round(value, 3) for value in found}) == 12
    for category, name in NAMES.items():
        expected = by_pycocotools(truth, results, "segm", category)[0]
        assert evaluation.segm_per_class[name] == (expected and pytest.approx(expected))
    assert list(evaluation.segm_per_class) == list(evaluation.per_class)
    assert evaluation.detections == results
    assert evaluation.remark is None
    assert (truth, results) == before


def test_boxes_score_as_without_masks(example):
    truth, results = example
    boxes = [{k: v for k, v in entry.items() if k != "segmentation"} for entry in results]
    alone = score(truth, boxes)
    assert tuple(alone.scores) == AP_KEYS
    assert alone.segm_per_class == {}
    assert {k: v for k, v in average_precision(truth, results).items() if k in AP_KEYS} == (
        alone.scores
    )


def test_perfect_masks_score_100(example, tmp_path):
    (tmp_path / "truth.json").write_text(json.dumps(example[0]))
    loaded = load_coco(tmp_path / "truth.json")
    perfect = [
        {
            **{key: entry[key] for key in ("image_id", "category_id", "bbox")},
            "segmentation": read_mask(entry, (HEIGHT, WIDTH)),
            "score": 0.9,
        }
        for entry in loaded["annotations"]
    ]
    scores = average_precision(loaded, perfect)
    assert [scores[key] for key in MASK_AP_KEYS] == pytest.approx([100.0] * 6)


def test_right_boxes_with_wrong_masks_score_by_boxes_only():
    one = annotation(1, 30, 9, compressed(ellipse(90, 70, 50, 40)))
    corners = np.zeros((HEIGHT, WIDTH), np.uint8)
    x, y, w, h = box_of(ellipse(90, 70, 50, 40))
    corners[y, x] = corners[y + h - 1, x + w - 1] = 1
    scores = average_precision(truth_of([one]), [detection(30, 9, corners, 0.9)])
    assert scores["AP"] == pytest.approx(100.0)
    assert scores["segm_AP"] == 0.0


def test_nothing_found_scores_0():
    """Empty results do not tell of themselves that they are of a detector with masks."""
    truth = truth_of([annotation(1, 30, 9, compressed(ellipse(90, 70, 20, 20)))])
    expected = {"AP": 0, "AP50": 0, "AP75": 0, "APs": None, "APm": 0, "APl": None}
    assert score(truth, []).scores == expected
    by_masks = {f"segm_{key}": value for key, value in expected.items()}
    assert score(truth, [], with_masks=True).scores == expected | by_masks
    nothing = score(truth_of([]), [], with_masks=True)
    assert nothing.scores == dict.fromkeys(AP_KEYS)
    assert nothing.remark == NO_MASKS


@pytest.mark.parametrize("value", ["missing", None, []])
def test_labels_without_any_mask_are_scored_by_boxes(example, value):
    truth, results = copy.deepcopy(example)
    for entry in truth["annotations"]:
        entry["segmentation"] = value
        if value == "missing":
            del entry["segmentation"]
    evaluation = score(truth, results)
    assert evaluation.scores == {key: score(*example).scores[key] for key in AP_KEYS}
    assert evaluation.segm_per_class == {}
    assert evaluation.remark == NO_MASKS


EMPTY = {  # ways to say that an object has no mask, or that none of it is in the image
    "missing": "missing",
    "null": None,
    "no polygon": [],
    "empty polygon": [[]],
    "line": [[60, 60, 90, 90]],
    "polygon without area": [[60.0, 60, 60, 60, 60, 60]],
    "polygon outside": [[300.0, 300, 320, 300, 320, 330]],
    "no pixel": {"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH]},
    "no pixel, compressed": compressed(np.zeros((HEIGHT, WIDTH), np.uint8)),
}


@pytest.mark.parametrize("kind", EMPTY)
def test_an_object_without_a_mask_is_neither_missed_nor_a_false_alarm(kind):
    """Of two objects one has a mask. Finding the other, with whatever mask, changes nothing."""
    labelled, other = ellipse(40, 40, 20, 15), ellipse(140, 90, 30, 30)
    annotations = [annotation(1, 30, 9, compressed(m), 0) for m in (labelled, other)]
    annotations[1].update(id=2, segmentation=EMPTY[kind])
    if kind == "missing":
        del annotations[1]["segmentation"]
    first = detection(30, 9, labelled, 0.5)
    for found in ([first], [first, detection(30, 9, other, 0.9)]):
        scores = average_precision(truth_of(annotations), found)
        assert scores["segm_AP"] == pytest.approx(100.0), found
    assert scores["AP"] == pytest.approx(100.0)  # its box counts as ever
    elsewhere = detection(30, 9, ellipse(140, 30, 20, 20), 0.9)
    assert average_precision(truth_of(annotations), [first, elsewhere])["segm_AP"] < 60


def test_masks_that_cannot_be_read_are_named():
    """What can be read is up to `data.masks`."""
    good = annotation(1, 30, 9, compressed(ellipse(90, 70, 20, 20)))
    for bad, words in (
        ([[10, 10, 20, 20, 30, 30, 40]], "its segmentation has a polygon of 7 numbers"),
        ({"size": [WIDTH, HEIGHT], "counts": [WIDTH * HEIGHT]}, "but the image is 150 high"),
    ):
        truth = truth_of([good, {**good, "id": 77, "segmentation": bad}])
        with pytest.raises(DataError, match=f"^annotation 77: .*{words}.*; correct it, or"):
            score(truth, [], with_masks=True)


def test_results_must_fit():
    mask = ellipse(90, 70, 20, 20)
    truth = truth_of([annotation(1, 30, 9, compressed(mask))])
    good = detection(30, 9, mask, 0.9)
    bare = {key: value for key, value in good.items() if key != "segmentation"}
    with pytest.raises(ValueError, match="image 30 has no 'segmentation', but others have; give"):
        score(truth, [good, bare])
    turned = {**good, "segmentation": compressed(mask.T)}
    with pytest.raises(ValueError, match="a mask of 150 x 200 pixels, but the image has 200 x 150"):
        score(truth, [turned])


def test_images_of_unknown_size():
    """Some tools leave it out: it is that of the detections' masks."""
    triangle = [[20.0, 20, 120, 20, 20, 110]]
    truth = truth_of([annotation(1, 30, 9, triangle), annotation(2, 40, 9, triangle)])
    for entry in truth["images"]:
        entry.update(width=None, height=None)
    mask = coco_mask.decode(coco_mask.frPyObjects(triangle, HEIGHT, WIDTH))[:, :, 0]
    found = detection(30, 9, mask, 0.9)
    with pytest.raises(DataError, match="annotation 2: .* needs the 'height' and 'width' of its"):
        score(truth, [found])
    del truth["annotations"][1]["segmentation"]
    assert average_precision(truth, [found])["segm_AP"] == pytest.approx(100.0)
