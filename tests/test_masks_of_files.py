"""Masks by way of image files and loaders: turned by EXIF, decoded smaller, from workers; and those
of the built-in dataset."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from data import shapes
from data.coco import CocoDataset
from data.errors import DataError
from data.images import ImageReading
from data.loaders import GroupedBatchSampler, train_loader
from data.masks import decode
from data.transforms import Augment
from data.views import DetectionDataset, SampleKey, TwoViewDataset, collate_detection, collate_views
from tests.helpers.image_files import oriented

SIDEWAYS = 6  # EXIF: shown after a quarter turn to the right


def painted(height, width):
    """A mask of some rectangles, and a picture that is white where it is 1."""
    mask = np.zeros((height, width), np.uint8)
    mask[height // 8 : height // 2, width // 8 : width // 2] = 1
    mask[height // 2 : -height // 8, width // 4 : -width // 8] = 1
    return mask, Image.fromarray(np.repeat(mask[..., None] * 255, 3, axis=2))


def write_json(folder, mask, name="a.jpg", images=1, size=None):
    """Annotations with this mask and a box around it in each of so many images of one file."""
    rle = coco_mask.encode(np.asfortranarray(mask))
    box = coco_mask.toBbox(rle).tolist()
    height, width = size or mask.shape
    shared = {"category_id": 1, "bbox": box, "area": float(mask.sum()), "iscrowd": 0}
    content = {
        "images": [
            {"id": n, "file_name": name, "height": height, "width": width} for n in range(images)
        ],
        "categories": [{"id": 1, "name": "thing"}],
        "annotations": [
            shared
            | {"id": 1 + n, "image_id": n // 2}
            | ({"segmentation": rle | {"counts": rle["counts"].decode()}} if n % 3 == 0 else {})
            for n in range(2 * images)
        ],
    }
    path = folder / "labels.json"
    path.write_text(json.dumps(content))
    return path


def agreement(sample):
    """Share of the pixels in which the first mask agrees with the picture of it."""
    white = sample["image"][0] >= 128
    return (sample["masks"][0].bool() == white).float().mean().item()


def test_masks_are_those_of_the_turned_picture(tmp_path):
    """As boxes, masks belong to the picture that `data.exif` shows; others are refused."""
    mask, picture = painted(60, 40)
    picture.transpose(Image.Transpose.ROTATE_90).save(
        tmp_path / "a.jpg", exif=oriented(SIDEWAYS), quality=95
    )
    turned = ImageReading(exif="apply")
    found = CocoDataset(tmp_path, write_json(tmp_path, mask), reading=turned, with_masks=True)
    for short_side in (40, 63):
        sample = DetectionDataset(found, Augment((short_side,), flip=1.0))[SampleKey(0, "a")]
        assert agreement(sample) > 0.97
    with pytest.raises(DataError, match=r"set data\.exif=apply"):
        CocoDataset(tmp_path, write_json(tmp_path, mask), with_masks=True)
    stored = write_json(tmp_path, mask.T, size=(60, 40))  # of the picture as it is stored
    with pytest.raises(DataError, match=r"has the size \[40, 60\], but the image is 60 high"):
        CocoDataset(tmp_path, stored, reading=turned, with_masks=True)


def test_masks_of_a_picture_that_is_decoded_smaller(tmp_path):
    mask, picture = painted(333, 501)
    picture.save(tmp_path / "a.jpg", quality=95)
    path = write_json(tmp_path, mask)
    whole = CocoDataset(tmp_path, path, with_masks=True)
    smaller = CocoDataset(tmp_path, path, with_masks=True, seen_at=(60, 90))
    assert smaller.read(0)[0].width < 501
    a, b = (
        DetectionDataset(coco, Augment((60,), max_side=90))[SampleKey(0, "a")]
        for coco in (whole, smaller)
    )
    assert torch.equal(a["masks"], b["masks"])
    assert agreement(b) > 0.97


@pytest.mark.parametrize("views", [False, True])
def test_workers_give_the_same_masks(tmp_path, views):
    mask, picture = painted(30, 44)
    picture.save(tmp_path / "a.jpg")
    coco = CocoDataset(tmp_path, write_json(tmp_path, mask, images=6), with_masks=True)
    augment = Augment((24, 36))
    dataset = TwoViewDataset(coco, augment, 2) if views else DetectionDataset(coco, augment)
    collate = collate_views if views else collate_detection

    def masks(workers):
        sampler = GroupedBatchSampler(coco.aspect_ratios, 2)
        batches = iter(train_loader(dataset, sampler, collate, workers))
        three = [next(batches) for _ in range(3)]
        if views:
            return [m for batch in three for m in batch[0]["masks"]]
        return [target["masks"] for batch in three for target in batch["targets"]]

    here, there = masks(0), masks(1)
    assert len(here) == len(there) == 6
    assert all(map(torch.equal, here, there))
    assert sum(int(m.any()) for m in here) > 0


def test_the_built_in_dataset_has_masks(tmp_path):
    shapes.generate(tmp_path / "shapes", train=3, val=1, size=64)
    path = tmp_path / "shapes/annotations/train.json"
    theirs = COCO(path)
    found = CocoDataset(tmp_path / "shapes/images/train", path, with_masks=True)
    assert found.contents.masks == found.contents.boxes > 3
    for record in found.records:
        entries = theirs.imgToAnns[record.image_id]
        masks = decode(record.masks, record.height, record.width)
        for mask, box, entry in zip(masks, record.boxes.int().tolist(), entries, strict=True):
            assert np.array_equal(mask, theirs.annToMask(entry))
            rows, columns = mask.any(axis=1).nonzero()[0], mask.any(axis=0).nonzero()[0]
            assert box == [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
            assert mask.sum() == entry["area"]


def test_boxes_that_are_left_out_take_their_masks_with_them(tmp_path):
    """Bad boxes, crowds and images without boxes in between, compared with a loop over the JSON."""
    rng = np.random.default_rng(0)
    content = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "thing"}]}
    expected = {}
    for image in range(30):
        Image.new("RGB", (24, 20)).save(tmp_path / f"{image}.png")
        entry = {"id": image, "file_name": f"{image}.png", "height": 20, "width": 24}
        content["images"].append(entry)
        for _ in range(rng.integers(0, 4)):
            kind = rng.choice(["good", "good", "flat", "outside", "crowd", "without a mask"])
            mask = np.asfortranarray(rng.random((20, 24)) < 0.5, np.uint8)
            rle = coco_mask.encode(mask)
            rle["counts"] = "" if kind == "without a mask" else rle["counts"].decode()
            box = {"flat": [2, 2, 0, 5], "outside": [30, 2, 4, 4]}.get(kind, [1, 2, 6, 9])
            content["annotations"].append(
                {"id": len(content["annotations"]), "image_id": image, "category_id": 1}
                | {"bbox": box, "area": 50.0, "iscrowd": int(kind == "crowd")}
                | ({} if kind == "without a mask" else {"segmentation": rle})
            )
            if kind in ("good", "without a mask"):
                expected.setdefault(image, []).append(rle["counts"].encode())
    rng.shuffle(content["annotations"])  # the order within an image is that of the file
    order = {}
    for entry in content["annotations"]:
        counts = entry.get("segmentation", {"counts": ""})["counts"].encode()
        if counts in expected.get(entry["image_id"], []) and not entry["iscrowd"]:
            order.setdefault(entry["image_id"], []).append(counts)
    path = tmp_path / "labels.json"
    path.write_text(json.dumps(content))
    found = CocoDataset(tmp_path, path, skip_empty=True, bad_boxes="drop", with_masks=True)
    assert {r.image_id: list(r.masks) for r in found.records} == order
    assert found.contents.masks == sum(map(bool, sum(order.values(), [])))
    assert len(found) < 30
    assert found.contents.bad_boxes > 5
    two = TwoViewDataset(found, Augment((20,), flip=0.0), max_proposals=1)
    for index, record in enumerate(found.records):
        assert torch.equal(
            two[SampleKey(index, "a")][0]["masks"],
            torch.from_numpy(decode(record.masks[:1], 20, 24)),
        )
