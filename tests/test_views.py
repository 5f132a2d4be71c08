"""Two views from files on disk: boxes on the pixels, the same instances, padding after flipping."""

from __future__ import annotations

import pytest
import torch

from data.coco import CocoDataset
from data.normalise import normalise_batch
from data.transforms import Augment
from data.views import (
    DetectionDataset,
    SampleKey,
    TwoViewDataset,
    collate_detection,
    collate_views,
    limit_boxes,
    pad_images,
)
from tests.helpers.drawn_boxes import COLOURS, find, save_coco
from tests.helpers.without_tensors import sent

LANDSCAPE = (96, 64, [(9, 5, 40, 21), (70, 8, 88, 52), (12, 40, 60, 57)])
PORTRAIT = (50, 90, [(3, 4, 20, 30), (24, 10, 45, 22), (8, 44, 30, 84), (36, 50, 46, 70)])


@pytest.fixture
def coco(tmp_path):
    return CocoDataset(tmp_path, save_coco(tmp_path, [LANDSCAPE, PORTRAIT, (40, 40, [])]))


def assert_boxes_follow(pixels, boxes, tolerance=1.0):
    for box, colour in zip(boxes, COLOURS, strict=False):
        torch.testing.assert_close(find(pixels, colour), box, rtol=0, atol=tolerance)


def relative(boxes, tensor):
    """Widths and heights as fractions of the view: they identify instances after a flip."""
    height, width = tensor.shape[-2:]
    return torch.stack(
        [(boxes[:, 2] - boxes[:, 0]) / width, (boxes[:, 3] - boxes[:, 1]) / height], dim=1
    )


def assert_flat_inside_and_edged(image, boxes):
    """Pixels inside a box have one colour, those around it another (any colours)."""
    pixels = image.float()
    for x1, y1, x2, y2 in boxes.round().int().tolist():
        inside = pixels[:, y1 + 2 : y2 - 2, x1 + 2 : x2 - 2].flatten(1)
        colour = inside.median(dim=1).values[:, None]
        assert (inside - colour).abs().max() <= 2
        sides = {
            "left": pixels[:, y1 + 2 : y2 - 2, max(x1 - 3, 0)],
            "right": pixels[:, y1 + 2 : y2 - 2, min(x2 + 2, pixels.shape[2] - 1)],
            "above": pixels[:, max(y1 - 3, 0), x1 + 2 : x2 - 2],
            "below": pixels[:, min(y2 + 2, pixels.shape[1] - 1), x1 + 2 : x2 - 2],
        }
        for side, values in sides.items():
            assert (values - colour).abs().sum(dim=0).min() >= 4, side


def test_views_show_the_same_instances(coco):
    """Distinct colours: box k of both views lies around the rectangle of colour k."""
    dataset = TwoViewDataset(coco, Augment((48, 64, 100), 140), max_proposals=None)
    flips, sizes = set(), set()
    for seed in range(30):
        for index, (_, _, boxes) in enumerate((LANDSCAPE, PORTRAIT)):
            views = dataset[SampleKey(index, f"seed {seed}")]
            assert len(views) == 2
            for view in views:
                assert view["boxes"].shape == (len(boxes), 4)
                assert_boxes_follow(view["image"], view["boxes"])
            flips.add(tuple(bool(v["boxes"][0, 0] > v["image"].shape[2] / 3) for v in views))
            sizes.add(tuple(min(v["image"].shape[1:]) for v in views))
    assert flips == {(a, b) for a in (False, True) for b in (False, True)}  # drawn independently
    assert len(sizes) > 6


def test_views_with_photometric_operations(coco):
    dataset = TwoViewDataset(coco, Augment((64, 100), 140, photometric=True), max_proposals=None)
    for seed in range(40):
        first, second = dataset[SampleKey(0, f"seed {seed}")]
        for view in (first, second):
            assert_flat_inside_and_edged(view["image"], view["boxes"])
        torch.testing.assert_close(
            relative(first["boxes"], first["image"]), relative(second["boxes"], second["image"])
        )


def test_padded_batch_of_flipped_views(coco):
    """Padding before the flip would move the pixels by the padding and leave the boxes behind."""
    dataset = TwoViewDataset(coco, Augment((64, 80), 140, flip=1.0), max_proposals=None)
    samples = [dataset[SampleKey(index, "flipped")] for index in (0, 1)]
    for view, batch in enumerate(collate_views(samples)):
        assert batch["images"].shape[0] == 2
        assert batch["names"] == [record.file_name for record in coco.records[:2]]
        assert batch["image_sizes"].tolist() == [
            list(sample[view]["image"].shape[1:]) for sample in samples
        ]
        assert (batch["image_sizes"][0] != batch["image_sizes"][1]).any()
        for n, (width, height, boxes) in enumerate((LANDSCAPE, PORTRAIT)):
            assert_boxes_follow(batch["images"][n], batch["boxes"][n])
            h, w = batch["image_sizes"][n].tolist()
            mirrored = [(width - x2, y1, width - x1, y2) for x1, y1, x2, y2 in boxes]
            scale = torch.tensor([w / width, h / height, w / width, h / height])
            torch.testing.assert_close(batch["boxes"][n], torch.tensor(mirrored) * scale)
            image = normalise_batch(batch)["images"][n]
            assert not image[:, h:].any()
            assert not image[:, :, w:].any()
            assert image[:, :h, :w].all()


def test_views_of_an_image_without_boxes(coco):
    dataset = TwoViewDataset(coco, Augment((64,), photometric=True), max_proposals=5)
    first, second = dataset[SampleKey(2, "none")]
    assert first["boxes"].shape == second["boxes"].shape == (0, 4)


def test_max_proposals_keeps_the_first_in_both_views(coco):
    dataset = TwoViewDataset(coco, Augment((64,)), max_proposals=2)
    for view in dataset[SampleKey(1, "limited")]:
        assert view["boxes"].shape == (2, 4)
        assert_boxes_follow(view["image"], view["boxes"])
    boxes = torch.arange(12.0).view(3, 4)
    assert torch.equal(limit_boxes(boxes, None), boxes)
    assert torch.equal(limit_boxes(boxes, 9), boxes)


def test_equal_keys_give_equal_samples(coco):
    augment = Augment((48, 64, 80), photometric=True)
    dataset = TwoViewDataset(coco, augment, max_proposals=None)
    for a, b in zip(dataset[SampleKey(0, "s")], dataset[SampleKey(0, "s")], strict=True):
        assert torch.equal(a["image"], b["image"])
        assert torch.equal(a["boxes"], b["boxes"])
    seen = {dataset[SampleKey(0, f"s{i}")][0]["image"].double().sum().item() for i in range(8)}
    assert len(seen) > 4


def test_detection_sample(coco):
    dataset = DetectionDataset(coco, Augment((128,), flip=0.0))
    assert len(dataset) == 3
    sample = dataset[SampleKey(0, "any")]
    assert sample["image"].shape == (3, 128, 192)
    assert sample["image"].dtype == torch.uint8
    assert_boxes_follow(sample["image"], sample["boxes"])
    assert sample["labels"].tolist() == [0, 0, 0]
    assert sample["image_id"] == 1
    assert sample["original_size"] == (64, 96)


@pytest.mark.parametrize(
    ("sizes", "divisor", "padded"),
    [
        ([(64, 96)], 32, (64, 96)),
        ([(65, 96)], 32, (96, 96)),
        ([(30, 70), (50, 10)], 32, (64, 96)),
        ([(3, 5), (4, 2)], 1, (4, 5)),
    ],
)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_pad_images(sizes, divisor, padded, dtype):
    generator = torch.Generator().manual_seed(0)
    images = [torch.rand(3, h, w, generator=generator) + 1 for h, w in sizes]
    images = [(100 * image).to(dtype) for image in images]
    batch, true_sizes = pad_images(images, divisor)
    assert batch.shape == (len(sizes), 3, *padded)
    assert batch.dtype == dtype
    assert batch.is_contiguous(memory_format=torch.channels_last)
    assert true_sizes.dtype == torch.int64
    assert true_sizes.tolist() == [list(size) for size in sizes]
    for row, image in zip(batch, images, strict=True):
        h, w = image.shape[1:]
        assert torch.equal(row[:, :h, :w], image)
        assert row.count_nonzero() == image.numel()  # zeros right and below


def test_collate_detection(coco):
    dataset = DetectionDataset(coco, Augment((64,), flip=1.0))
    batch = collate_detection([dataset[SampleKey(index, "s")] for index in range(3)])
    assert batch["images"].shape == (3, 3, 128, 96)
    assert batch["image_ids"] == [1, 2, 3]
    assert batch["names"] == [record.file_name for record in coco.records[:3]]
    assert batch["original_sizes"] == [(64, 96), (90, 50), (40, 40)]
    assert [len(t["boxes"]) for t in batch["targets"]] == [3, 4, 0]
    assert [len(t["labels"]) for t in batch["targets"]] == [3, 4, 0]
    for image, target in zip(batch["images"], batch["targets"], strict=True):
        assert_boxes_follow(image, target["boxes"])


@pytest.mark.parametrize(
    "dataset_of", [lambda c, a: DetectionDataset(c, a), lambda c, a: TwoViewDataset(c, a, None)]
)
def test_datasets_are_sent_to_workers_without_tensors(coco, dataset_of):
    dataset = dataset_of(coco, Augment((32,), photometric=True))
    key = SampleKey(1, "a")
    ours, expected = sent(dataset)[key], dataset[key]
    if isinstance(dataset, DetectionDataset):
        ours, expected = [ours], [expected]
    for mine, its in zip(ours, expected, strict=True):
        assert torch.equal(mine["image"], its["image"])
        assert torch.equal(mine["boxes"], its["boxes"])
    assert dataset.path(1) == coco.images / coco.records[1].file_name
