"""Masks from COCO JSON to batches, against pycocotools and against pictures of them."""

from __future__ import annotations

import json
import pickle
import random

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from data import coco_file, coco_masks
from data.coco import CocoDataset
from data.digest import digest_of
from data.errors import DataError
from data.masks import decode, encode, resized, run_lengths
from data.transforms import Augment
from data.views import DetectionDataset, SampleKey, TwoViewDataset, collate_detection, collate_views

POLYGON = [[10.5, 5.0, 40.0, 8.5, 33.0, 27.0, 12.0, 25.0]]
TWO = [[1, 1, 9, 1, 9, 9, 1, 9], [20, 20, 29.5, 20, 25, 28]]


def drawn(height=30, width=48, seed=0):
    """A few random rectangles."""
    rng, mask = np.random.default_rng(seed), np.zeros((height, width), np.uint8)
    for _ in range(3):
        y, x = rng.integers(0, height - 4), rng.integers(0, width - 4)
        mask[y : y + rng.integers(2, 12), x : x + rng.integers(2, 20)] = 1
    return mask


def rle_of(mask, compressed=True):
    if compressed:
        rle = coco_mask.encode(np.asfortranarray(mask))
        return {"size": rle["size"], "counts": rle["counts"].decode()}
    flat = mask.flatten("F")
    changes = np.flatnonzero(np.diff(np.concatenate([[0], flat, [2]])))
    counts = np.diff(np.concatenate([[0], changes])).tolist()
    return {"size": list(mask.shape), "counts": counts}


SEGMENTATIONS = {
    "polygon": POLYGON,
    "two polygons": TWO,
    "with a line": [*POLYGON, [1, 1, 5, 5]],
    "RLE": rle_of(drawn()),
    "uncompressed": rle_of(drawn(seed=1), compressed=False),
    "full": rle_of(np.ones((30, 48), np.uint8)),
    "empty": rle_of(np.zeros((30, 48), np.uint8)),
    "fine": rle_of(np.indices((30, 48)).sum(axis=0).astype(np.uint8) % 2),
}


def coco(segmentations, width=48, height=30):
    boxes = [[float(3 * n), 2.0, 20.0, 20.0] for n in range(len(segmentations))]
    return {
        "images": [{"id": 7, "file_name": "a.png", "height": height, "width": width}],
        "categories": [{"id": 1, "name": "thing"}],
        "annotations": [
            {
                **{"id": n, "image_id": 7, "category_id": 1, "bbox": box, "area": 400.0},
                **({} if segmentation is None else {"segmentation": segmentation}),
                "iscrowd": 0,
            }
            for n, (box, segmentation) in enumerate(zip(boxes, segmentations, strict=True), start=1)
        ],
    }


@pytest.fixture
def dataset(tmp_path):
    """A dataset with one picture of noise and these segmentations."""

    def build(segmentations, **options):
        pixels = np.random.default_rng(0).integers(0, 255, (30, 48, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "a.png")
        path = tmp_path / "labels.json"
        path.write_text(json.dumps(coco(segmentations)))
        return CocoDataset(tmp_path, path, with_masks=True, **options)

    return build


@pytest.mark.parametrize("kind", SEGMENTATIONS)
def test_pycocotools_reads_the_same(tmp_path, kind):
    path = tmp_path / "a.json"
    content = coco([[v for v in SEGMENTATIONS[kind] if len(v) > 4]] if kind == "with a line" else
                   [SEGMENTATIONS[kind]])  # fmt: skip
    path.write_text(json.dumps(content))
    theirs = COCO(path)
    expected = theirs.annToMask(theirs.anns[1])
    counts = encode(SEGMENTATIONS[kind], 30, 48)
    assert np.array_equal(decode([counts], 30, 48)[0], expected)


@pytest.mark.parametrize("seed", range(20))
def test_run_lengths(seed):
    rng = np.random.default_rng(seed)
    mask = (rng.random((37, 53)) < rng.random() ** 3).astype(np.uint8)
    counts = coco_mask.encode(np.asfortranarray(mask))["counts"]
    assert run_lengths(counts).tolist() == rle_of(mask, compressed=False)["counts"]


@pytest.mark.parametrize(
    ("segmentation", "problem"),
    [
        ([[1, 2, 3, 4, 5]], "a polygon of 5 numbers, which are not pairs"),
        ([[1, 2, "3", 4, 5, 6]], "not a list of finite numbers"),
        ([[1, 2, None, 4, 5, 6]], "not a list of finite numbers"),
        ([1, 2, 3], "a polygon of 3 numbers"),
        ("text", "is str, not polygons or RLE"),
        ({"size": [48, 30], "counts": [1440]}, r"the size \[48, 30\], but the image is 30 high"),
        ({"size": [30, 48], "counts": [1439]}, "for 1,439 pixels, but the image has 1,440"),
        ({"size": [30, 48], "counts": [-1, 1441]}, "neither text nor a list of whole numbers"),
        ({"size": [30, 48], "counts": [1440.0]}, "neither text nor a list of whole numbers"),
        ({"size": [30, 48]}, "neither text nor a list of whole numbers"),
        ({"size": [30, 48], "counts": "0"}, "for 0 pixels"),
        ({"size": [30, 48], "counts": "P~"}, "no compressed RLE"),
        ({"size": [30, 48], "counts": "é"}, "no compressed RLE|pixels"),
        ({"size": [30, 48], "counts": "oooooooooo0"}, "no compressed RLE"),
        ([[1, 2, 3, float("nan"), 5, 6]], "not a list of finite numbers"),
        ([[1, 2, 3, float("inf"), 5, 6]], "not a list of finite numbers"),
        ([[1, 2, True, 4, 5, 6]], "not a list of finite numbers"),
        ([[1, 2, -1e9, 4, 5, 6]], "further, or is longer, than 1,000,000 pixels"),
        ([[1, 2, 10**400, 4, 5, 6]], "further, or is longer, than 1,000,000 pixels"),
        ([[float("nan"), 2, 10**400, 4, 5, 6]], "further, or is longer, than 1,000,000 pixels"),
        ([[0, 0, 9e5, 0] * 3], "further, or is longer, than 1,000,000 pixels"),
        ({"size": [30, 48], "counts": [10**400]}, "for too many pixels"),
        ({"size": [30, 48], "counts": "OQ]1"}, "counts below 0"),  # -1 and 1441
        ({"size": "none", "counts": [1440]}, 'the size "none", but'),
        ({"counts": {}}, "neither text nor a list"),
    ],
)
def test_what_cannot_be_used_is_one_sentence(dataset, segmentation, problem):
    with pytest.raises(DataError, match=rf"annotation 2: its segmentation .*{problem}.*; correct"):
        dataset([POLYGON, segmentation])


def test_boxes_with_and_without(dataset):
    found = dataset([POLYGON, None, [], rle_of(drawn()), SEGMENTATIONS["empty"]])
    record = found.records[0]
    assert [bool(mask) for mask in record.masks] == [True, False, False, True, False]
    assert "without a mask: 3 boxes, of which no mask is learned" in found.contents.lines()
    sample = DetectionDataset(found, Augment((30,), flip=0.0))[SampleKey(0, "a")]
    assert np.array_equal(sample["masks"][3].numpy(), drawn())
    assert sample["masks"][1].sum() == sample["masks"][4].sum() == 0
    with pytest.raises(DataError, match="none of its boxes has a mask"):
        dataset([None, []])


def test_polygons_of_two_points_are_bad_boxes(tmp_path, dataset, monkeypatch):
    given = [POLYGON, [[1, 2, 3, 4]], [*POLYGON, [5, 6], [1, 2, 3, 4], []]]
    problem = "annotation 2: its segmentation has a polygon of fewer than three points; correct it"
    with pytest.raises(DataError, match=problem):
        dataset(given)
    for large in (False, True, True):  # the third time it is kept
        if large:
            monkeypatch.setattr(coco_masks, "LARGE_FILE", 1)
        found = dataset(given, bad_boxes="drop")
        every = found.records[0].masks
        assert every == (every[0], b"", every[0])
        lines = found.contents.lines()
        assert "left out: 4 polygons of fewer than three points" in lines
        assert "without a mask: 1 box, of which no mask is learned" in lines
    with pytest.raises(DataError, match=problem):
        CocoDataset(tmp_path, found.annotations, with_masks=True)
    assert "left out" not in "".join(CocoDataset(tmp_path, found.annotations).contents.lines())


def test_crowds_are_left_out_with_their_masks(tmp_path, dataset):
    found = dataset([POLYGON, TWO, rle_of(drawn())])
    path = found.annotations
    content = json.loads(path.read_text())
    content["annotations"][1]["iscrowd"] = 1
    path.write_text(json.dumps(content))
    left = CocoDataset(tmp_path, path, with_masks=True).records[0].masks
    every = found.records[0].masks
    assert left == (every[0], every[2])
    assert CocoDataset(tmp_path, path, with_masks=True, crowd="keep").records[0].masks == every


@pytest.mark.parametrize("size", [(30, 48), (45, 72), (17, 27), (60, 60)])
def test_a_painted_mask_and_a_picture_of_it_stay_equal(size):
    mask = drawn(seed=3)
    picture = Image.fromarray(np.repeat(mask[..., None] * 255, 3, axis=2))
    counts = (encode(rle_of(mask), 30, 48),)
    augment = Augment(short_sides=(min(size),), max_side=max(size), flip=0.5)
    flips = set()
    for seed in range(6):
        image, _, moved, _ = augment.with_masks(
            picture, torch.zeros(1, 4), counts, random.Random(seed)
        )
        assert torch.equal(moved[0], (image[0] >= 128).to(torch.uint8))
        flips.add(moved[0].numpy().tobytes())
    assert len(flips) == 2
    assert moved.dtype == torch.uint8


def test_what_covers_half_of_a_pixel_has_it():
    mask = np.zeros((4, 8), np.uint8)
    mask[:, :5] = 1  # of four pixels of half the size two and a half
    found = resized([encode(rle_of(mask), 4, 8)], (4, 8), 8, 4)
    assert np.array_equal(found[0].numpy(), mask)
    small = resized([encode(rle_of(mask), 4, 8)], (4, 8), 4, 2)[0]
    assert small.tolist() == [[1, 1, 1, 0]] * 2  # the third is covered by its half


@pytest.mark.parametrize("size", [(61, 90), (90, 61), (45, 45), (200, 33), (12, 9), (1, 1)])
def test_resized_where_it_is_as_if_it_were_whole(size):
    """Pillow's resize of the whole mask is the oracle; also for masks with nothing in them."""
    rng = np.random.default_rng(0)
    masks = [np.zeros((61, 90), np.uint8)]
    for density in (0.0005, 0.01, 0.3):
        for _ in range(4):
            mask = np.zeros((61, 90), np.uint8)
            y, x, h, w = rng.integers(0, 50, 4)
            part = mask[y : y + h + 1, x : x + w + 1]
            part[:] = rng.random(part.shape) < density
            masks.append(mask)
    counts = [coco_mask.encode(np.asfortranarray(mask))["counts"] for mask in masks]
    found = resized([*counts, b""], (61, 90), size[1], size[0]).numpy()
    for mask, of_mask in zip([*masks, masks[0]], found, strict=True):
        whole = Image.fromarray(mask * 255).resize(size[::-1], Image.Resampling.BILINEAR)
        assert np.array_equal(of_mask, np.asarray(whole) >= 128)


def test_batches(dataset):
    found = dataset([POLYGON, None, rle_of(drawn())])
    keys = [SampleKey(0, "a"), SampleKey(0, "b")]
    of = DetectionDataset(found, Augment((40, 64)))
    batch = collate_detection([of[key] for key in keys])
    for target, (height, width) in zip(
        batch["targets"], batch["image_sizes"].tolist(), strict=True
    ):
        assert target["masks"].shape == (3, height, width)
    two = TwoViewDataset(found, Augment((40, 64)), max_proposals=2)
    first, second = collate_views([two[key] for key in keys])
    for masks, size in zip(first["masks"], first["image_sizes"].tolist(), strict=True):
        assert masks.shape == (2, *size)
    assert "masks" not in second


def test_a_run_does_not_go_on_with_other_masks(dataset, tmp_path):
    """The digest of its inputs: of the masks that are used, whatever lies between them."""
    given = [POLYGON, TWO, rle_of(drawn()), None, POLYGON]
    found = dataset(given)
    plain = CocoDataset(tmp_path, found.annotations)
    expected, without = digest_of(found), digest_of(plain)
    assert expected != without
    for other in ([TWO, POLYGON, *given[2:]], [*given[:3], POLYGON, None], [*given[:4], TWO]):
        assert digest_of(dataset(other)) != expected
        assert digest_of(CocoDataset(tmp_path, found.annotations)) == without
    content = coco([POLYGON, SEGMENTATIONS["fine"], *given[1:]])
    crowd = content["annotations"][1]
    crowd["iscrowd"] = 1
    for entry, box in zip(content["annotations"][2:], (3.0, 6.0, 9.0, 12.0), strict=True):
        entry["bbox"][0] = box
    found.annotations.write_text(json.dumps(content))
    assert digest_of(CocoDataset(tmp_path, found.annotations, with_masks=True)) == expected


def test_nothing_is_read_that_nobody_asked_for(dataset, monkeypatch):
    path = dataset([POLYGON]).annotations
    monkeypatch.setattr(coco_masks, "encode", None)
    plain = CocoDataset(path.parent, path)
    assert plain.records[0].masks is None
    assert "masks" not in DetectionDataset(plain, Augment((30,)))[SampleKey(0, "a")]
    assert plain.contents.masks is None


def many(images=40, per_image=6):
    """Annotations in any order of their images."""
    rng = random.Random(0)
    annotations = [
        {
            **{"id": 1 + n, "image_id": 1 + n % images, "category_id": 1, "iscrowd": 0},
            **{"bbox": [1.0, 2.0, 10.0, 10.0], "area": 100.0},
            "segmentation": rle_of(drawn(20, 30, seed=n)) if n % 5 else [],
        }
        for n in range(images * per_image)
    ]
    rng.shuffle(annotations)
    listed = [
        {"id": 1 + n, "file_name": f"{n}.png", "height": 20, "width": 30} for n in range(images)
    ]
    categories = [{"id": 1, "name": "thing"}]
    return {"images": listed, "annotations": annotations, "categories": categories}


@pytest.mark.parametrize("large", [False, True])
def test_masks_stay_with_their_boxes(tmp_path, monkeypatch, large):
    monkeypatch.setattr(coco_masks, "ROWS", 7)
    if large:
        monkeypatch.setattr(coco_masks, "LARGE_FILE", 1)
        monkeypatch.setattr(coco_file, "LARGE_FILE", 1)
    content, path = many(), tmp_path / "a.json"
    path.write_text(json.dumps(content))
    boxes = coco_file.open_coco(path)
    masks = pickle.loads(pickle.dumps(coco_masks.open_masks(path, boxes)))
    by_id = {a["id"]: a["segmentation"] for a in content["annotations"]}
    ids = boxes.box_ids(slice(0, len(masks))).tolist()
    assert len(ids) == len(masks) == 240
    for row, number in enumerate(ids):
        expected = by_id[number]["counts"].encode() if by_id[number] else b""
        assert masks.rle(row) == expected
    there = masks.lengths(np.arange(240)) > 0
    assert there.tolist() == [bool(by_id[number]) for number in ids]
    kept = sorted(p.name for p in tmp_path.iterdir())
    assert kept == (["a.json", "a.json.masks.packed", "a.json.packed"] if large else ["a.json"])
    if large:  # found again, and made anew when the JSON has changed
        monkeypatch.setattr(coco_masks, "pack_masks", None)
        assert len(coco_masks.open_masks(path, boxes)) == 240
        monkeypatch.undo()
        monkeypatch.setattr(coco_masks, "LARGE_FILE", 1)
        next(a for a in content["annotations"] if a["segmentation"])["segmentation"] = []
        path.write_text(json.dumps(content))
        changed = coco_masks.open_masks(path, coco_file.open_coco(path))
        assert (changed.lengths(np.arange(240)) > 0).sum() == there.sum() - 1


def test_an_image_without_a_size_cannot_have_polygons(tmp_path):
    content = coco([POLYGON])
    del content["images"][0]["width"]
    Image.new("RGB", (48, 30)).save(tmp_path / "a.png")
    path = tmp_path / "a.json"
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match="needs the 'height' and 'width' of its image"):
        CocoDataset(tmp_path, path, with_masks=True)
    CocoDataset(tmp_path, path)
