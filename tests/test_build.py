"""Datasets built from the `data` section: what each stage reads, and errors that name the key."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data.build import DataConfig, SplitConfig, build_train, build_two_views, build_val
from data.coco import CocoDataset
from data.errors import DataError
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
    for dataset in (build_train(config).coco, build_val(config).coco,
                    build_two_views(config, None).source):
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
        ({"bad_boxes": "ignore"}, "data.bad_boxes is 'ignore'; set it to error or drop"),
    ],
)
def test_impossible_values(options, words):
    with pytest.raises(ValueError, match="data") as error:
        DataConfig(**options)
    assert words in str(error.value)
