"""Datasets built from the `data` section: what each stage reads, and errors that name the key."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from data.build import (
    DataConfig,
    SplitConfig,
    build_image_files,
    build_train,
    build_two_views,
    build_val,
)
from data.coco import CocoDataset
from data.errors import DataError
from data.image_check import reading_entry
from data.image_views import ImageViews
from data.images import ImageReading, reduced
from data.proposals.propose import ProposalSettings
from data.proposals.searched_images import SearchedImages
from data.views import SampleKey
from tests.helpers.drawn_boxes import save_coco

PICTURES = [(64, 48, [(4, 4, 30, 30), (33, 10, 60, 40)]), (48, 64, []), (50, 50, [(9, 9, 40, 44)])]


@pytest.fixture
def split(tmp_path):
    path = str(save_coco(tmp_path, PICTURES))
    return SplitConfig(images=str(tmp_path), annotations=path, proposals=path)


def spoil(split):
    """Give one box no area."""
    with open(split.annotations, encoding="utf-8") as file:
        content = json.load(file)
    content["annotations"][0]["bbox"][2] = 0
    with open(split.annotations, "w", encoding="utf-8") as file:
        json.dump(content, file)


def test_two_views_read_proposals_and_all_images(split):
    split = SplitConfig(images=split.images, proposals=split.proposals)  # no labels needed
    config = DataConfig(train=split, short_sides=(32, 40), max_side=64, flip=0.25)
    dataset = build_two_views(config, max_proposals=1)
    assert len(dataset) == 3
    assert dataset.augment.photometric  # the paper's views, whatever data.photometric says
    assert dataset.augment.short_sides == (32, 40)
    assert (dataset.augment.max_side, dataset.augment.flip) == (64, 0.25)
    views = dataset[SampleKey(0, "s")]
    assert [len(view["boxes"]) for view in views] == [1, 1]
    assert {min(view["image"].shape[1:]) for view in views} <= {32, 40}


def test_two_views_without_a_file_search_for_boxes(split, tmp_path):
    """The labels are not used, whether they are given or not."""
    cache = tmp_path / "cache"
    config = DataConfig(
        train=SplitConfig(images=split.images, annotations="not/read.json"),
        proposal_cache=str(cache),
        short_sides=(48,),
    )
    dataset = build_two_views(config, max_proposals=1)
    assert isinstance(dataset.source, SearchedImages)
    assert dataset.source.cache.folder.parent == cache
    assert dataset.source.cache.settings == ProposalSettings()
    assert dataset.augment.photometric
    first, second = dataset[SampleKey(0, "s")]
    assert len(first["boxes"]) == len(second["boxes"]) == 1
    assert "masks" not in first
    masked = build_two_views(config, max_proposals=1, with_masks=True)
    assert masked.source.cache.settings == ProposalSettings(masks=True)
    assert masked.source.cache.folder.parent == cache
    view, _ = masked[SampleKey(0, "s")]
    assert view["masks"].shape == (1, *view["image"].shape[1:])
    assert view["masks"].any()
    assert len(dataset.source.read(0)[1].boxes) > 1  # the cache holds all


def test_a_file_of_proposals_leaves_the_cache_alone(split, tmp_path):
    cache = tmp_path / "cache"
    dataset = build_two_views(DataConfig(train=split, proposal_cache=str(cache)), None)
    assert isinstance(dataset.source, CocoDataset)
    assert not cache.exists()


@pytest.mark.parametrize(("skip_empty", "images"), [(True, 2), (False, 3)])
def test_train_skips_empty_images_if_told(split, skip_empty, images):
    split = SplitConfig(images=split.images, annotations=split.annotations)
    dataset = build_train(DataConfig(train=split, skip_empty=skip_empty, photometric=True))
    assert len(dataset) == images
    assert dataset.augment.photometric
    assert not build_train(DataConfig(train=split)).augment.photometric


def test_val_keeps_all_images_and_only_resizes(split):
    config = DataConfig(val=split, short_sides=(24, 36), flip=1.0, photometric=True)
    dataset = build_val(config)
    assert len(dataset) == 3
    for seed in range(5):
        sample = dataset[SampleKey(0, f"seed {seed}")]
        assert sample["image"].shape == (3, 36, 48)
        assert sample["boxes"].tolist() == [[3, 3, 22.5, 22.5], [24.75, 7.5, 45, 30]]


@pytest.mark.parametrize(("val_short_side", "expected"), [(None, 36), (20, 20)])
def test_short_side_of_evaluation(val_short_side, expected):
    config = DataConfig(short_sides=(24, 36, 30), val_short_side=val_short_side)
    assert config.eval_short_side == expected


@pytest.mark.parametrize(("crowd", "boxes"), [("ignore", 2), ("keep", 3)])
def test_crowd_reaches_the_datasets(split, crowd, boxes):
    """Training, evaluation and pre-training treat them alike."""
    content = json.loads(Path(split.annotations).read_text())
    content["annotations"][0]["iscrowd"] = 1
    Path(split.annotations).write_text(json.dumps(content))
    config = DataConfig(train=split, val=split, crowd=crowd)
    for dataset in (
        build_train(config).coco,
        build_val(config).coco,
        build_two_views(config, None).source,
    ):
        assert dataset.contents.boxes == boxes
        assert dataset.crowd == crowd


def test_bad_boxes_reach_the_datasets(split):
    spoil(split)
    config = DataConfig(train=split, val=split)
    for build in (lambda: build_train(config), lambda: build_two_views(config, None)):
        with pytest.raises(DataError, match=r"annotation 1 has no area.*data\.bad_boxes=drop"):
            build()
    assert len(build_val(config).coco.records[0].boxes) == 1  # scored against the file itself
    config = DataConfig(train=split, bad_boxes="drop")
    assert build_train(config).coco.dropped == 1
    assert build_two_views(config, None).source.dropped == 1


@pytest.fixture
def turned(tmp_path):
    """One photograph on its side, and a file for the upright picture."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (64, 48), "red").save(tmp_path / "a.png", exif=exif)
    content = {
        "images": [{"id": 1, "file_name": "a.png", "width": 48, "height": 64}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [4, 40, 30, 20]}],
        "categories": [{"id": 1, "name": "object"}],
    }
    path = tmp_path / "upright.json"
    path.write_text(json.dumps(content))
    return SplitConfig(images=str(tmp_path), annotations=str(path), proposals=str(path))


def test_the_way_to_read_images_reaches_every_dataset(turned, tmp_path):
    config = DataConfig(train=turned, val=turned, proposal_cache=str(tmp_path / "cache"))
    builders = (build_train, build_val, lambda config: build_two_views(config, None))
    for build in builders:
        with pytest.raises(DataError, match=r"set data\.exif=apply"):
            build(config)
    config = dataclasses.replace(config, exif="apply", value_range=(0, 4095), max_pixels=99_999)
    sources = [build_train(config).coco, build_val(config).coco]
    sources.append(build_two_views(config, None).source)
    no_file = SplitConfig(images=turned.images)
    sources.append(build_two_views(dataclasses.replace(config, train=no_file), None).source)
    assert isinstance(sources[3], SearchedImages)
    readings = [source.reading for source in sources[:3]] + [sources[3].cache.reading]
    assert [reading.max_pixels for reading in readings] == [99_999] * 4
    assert sources[3].cache.reading == sources[0].reading == ImageReading("apply", (0, 4095))
    for source in sources:
        image, record = source.read(0)
        assert image.size == (48, 64)
        assert (record.height, record.width) == (64, 48)
        assert source.aspect_ratios == [64 / 48]
    for split in (turned, no_file):  # the image stage, with a list and without
        images = build_image_files(dataclasses.replace(config, train=split), with_classes=False)
        assert images.reading == config.reading
        assert images.reading.max_pixels == 99_999
        views = ImageViews(images, lambda image, rng: torch.tensor(image.size))
        assert views[SampleKey(0, "s")]["views"][0].tolist() == [48, 64]


def test_classes_are_read_as_told(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (6, 4)).save(tmp_path / name / "a.png")
    config = DataConfig(train=SplitConfig(images=str(tmp_path)), exif="apply")
    assert build_image_files(config, with_classes=True).reading == ImageReading("apply")


def test_proposals_of_pictures_that_were_read_otherwise(split):
    with open(split.proposals, encoding="utf-8") as file:
        content = json.load(file)
    with open(split.proposals, "w", encoding="utf-8") as file:
        json.dump({**content, "info": reading_entry(ImageReading())}, file)
    build_two_views(DataConfig(train=split), None)
    for changes in ({"exif": "apply"}, {"value_range": (0.0, 9.0)}):
        with pytest.raises(DataError, match="find the boxes again"):
            build_two_views(DataConfig(train=split, **changes), None)


@pytest.mark.parametrize(
    ("build", "name", "keys"),
    [
        (build_train, "train", ("images", "annotations")),
        (build_val, "val", ("images", "annotations")),
        (lambda config: build_two_views(config, None), "train", ("images",)),
    ],
)
def test_missing_keys_are_named(split, build, name, keys):
    for missing in keys:
        given = {key: getattr(split, key) for key in keys if key != missing}
        with pytest.raises(DataError, match=rf"^data\.{name}\.{missing} is not set; add it"):
            build(DataConfig(**{name: SplitConfig(**given)}))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch_size": 0}, "data.batch_size"),
        ({"workers": -1}, "data.workers"),
        ({"short_sides": ()}, "data.short_sides"),
        ({"short_sides": (800, 0)}, "data.short_sides"),
        ({"max_side": 0}, "data.max_side is 0; it must be at least 1"),
        ({"val_short_side": 0}, "data.val_short_side is 0; it must be at least 1"),
        ({"flip": 1.5}, "data.flip is 1.5; it must be at least 0 and at most 1"),
        ({"flip": -0.1}, "data.flip is -0.1; it must be at least 0 and at most 1"),
        ({"crowd": "drop"}, "data.crowd is 'drop'; set it to ignore or keep"),
        ({"exif": "turn"}, "data.exif is 'turn'; set it to stored or apply"),
        ({"max_pixels": 0}, "data.max_pixels is 0; it must be at least 1"),
        ({"value_range": (9.0, 1.0)}, "data.value_range is [9.0, 1.0]; it must be two numbers"),
        ({"bad_boxes": "ignore"}, "data.bad_boxes is 'ignore'; set it to error or drop"),
    ],
)
def test_impossible_values(options, words):
    with pytest.raises(ValueError, match="data") as error:
        DataConfig(**options)
    assert words in str(error.value)


@pytest.mark.parametrize("build", ["train", "val", "two_views", "image_files"])
def test_files_outside_of_the_folder_are_read_only_if_that_is_allowed(split, tmp_path, build):
    (tmp_path / "inner").mkdir()
    with open(split.annotations, encoding="utf-8") as file:
        content = json.load(file)
    for entry in content["images"]:
        entry["file_name"] = f"../{entry['file_name']}"
    inner = tmp_path / "inner.json"
    inner.write_text(json.dumps(content))
    split = SplitConfig(str(tmp_path / "inner"), str(inner), str(inner))
    config = DataConfig(train=split, val=split, skip_empty=False)
    builders = {
        "train": build_train,
        "val": build_val,
        "two_views": lambda config: build_two_views(config, None),
        "image_files": lambda config: build_image_files(config, with_classes=False),
    }
    with pytest.raises(DataError, match=r"leads out of the folder .*data\.allow_outside=true"):
        builders[build](config)
    assert len(builders[build](dataclasses.replace(config, allow_outside=True))) == 3


@pytest.mark.parametrize(("scaled", "scales"), [(False, (1, 1, 1)), (True, (4, 4, 2))])
def test_scaled_decoding_keeps_what_the_largest_view_needs(tmp_path, scaled, scales):
    """Boxes stay the same; the images of views of 48 px are decoded at a quarter."""
    Image.new("RGB", (403, 201), (90, 120, 30)).save(tmp_path / "a.jpg")
    entry = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [40, 20, 200, 100]}
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 403, "height": 201}],
        "annotations": [entry],
        "categories": [{"id": 1, "name": "object"}],
    }
    path = tmp_path / "a.json"
    path.write_text(json.dumps(content))
    split = SplitConfig(images=str(tmp_path), annotations=str(path), proposals=str(path))
    sides = {"short_sides": (32, 48), "val_short_side": 100, "max_side": 999, "flip": 0.0}
    config = DataConfig(train=split, val=split, scaled_decoding=scaled, **sides)
    train, val, views = build_train(config), build_val(config), build_two_views(config, None)
    sources = (train.coco, views.source, val.coco)
    assert tuple(reduced(source.read(0)[0]).scale for source in sources) == scales
    sample = val[SampleKey(0, "")]
    assert sample["image"].shape == (3, 100, 200)
    assert sample["original_size"] == (201, 403)
    x, y = 200 / 403, 100 / 201
    torch.testing.assert_close(sample["boxes"][0], torch.tensor([40 * x, 20 * y, 240 * x, 120 * y]))
    assert (sample["image"].float() - torch.tensor([90, 120, 30]).view(3, 1, 1)).abs().max() < 4
