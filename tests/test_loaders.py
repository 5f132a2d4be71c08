"""Batches: full coverage, groups, ranks, resuming, workers; readable errors of workers."""

from __future__ import annotations

import itertools
import multiprocessing
from collections import Counter

import pytest
import torch
from torch.utils.data import Dataset

from data.coco import CocoDataset
from data.errors import DataError
from data.loaders import GroupedBatchSampler, eval_loader, iterate, to_device, train_loader
from data.transforms import Augment
from data.views import (
    DetectionDataset,
    SampleKey,
    TwoViewDataset,
    collate_detection,
    collate_views,
)
from tests.helpers.drawn_boxes import save_coco

# 11 landscape or square images, 6 portraits.
RATIOS = [0.75, 1.5, 1.0, 0.66, 1.33, 0.75, 0.5, 2.0, 0.7, 0.75, 1.01, 0.6, 0.9, 1.2, 0.8, 1.5, 0.3]


class Keys(Dataset):
    """Samples are their keys."""

    def __init__(self, length):
        self.length = length

    def __len__(self):
        return self.length

    def __getitem__(self, key):
        return key


class Failing(Keys):
    """The sample of index 2 fails."""

    def __init__(self, error):
        super().__init__(4)
        self.error = error

    def __getitem__(self, key):
        if key.index == 2:
            raise self.error
        return key


def take(sampler, steps):
    return list(itertools.islice(sampler, steps))


@pytest.fixture
def coco(tmp_path):
    box = [(3, 4, 15, 16)]
    pictures = [(24 + n, 20, box) if n % 2 else (20, 24 + n, box * (n % 3)) for n in range(10)]
    return CocoDataset(tmp_path, save_coco(tmp_path, pictures))


@pytest.mark.parametrize("batch_size", [1, 2, 3, 4, 6, 7, 16])
def test_each_epoch_covers_every_image(batch_size):
    sampler = GroupedBatchSampler(RATIOS, batch_size)
    groups = (11, 6) if batch_size <= 6 else (17,)
    steps = sum(-(-group // batch_size) for group in groups)
    assert sampler.steps_per_epoch == steps
    batches = take(sampler, 3 * steps)
    for epoch in range(3):
        drawn = [key.index for b in batches[epoch * steps : (epoch + 1) * steps] for key in b]
        assert set(drawn) == set(range(17))
        assert len(drawn) == steps * batch_size
        assert max(Counter(drawn).values()) <= 2  # in different batches, see below


def test_no_batch_mixes_portrait_and_landscape():
    for batch in take(GroupedBatchSampler(RATIOS, 4), 40):
        assert len(batch) == 4
        assert len({RATIOS[key.index] > 1 for key in batch}) == 1


@pytest.mark.parametrize(("batch_size", "world_size"), [(5, 1), (3, 2), (7, 1), (4, 3), (17, 1)])
def test_batches_repeat_no_image(batch_size, world_size):
    """In box-domain pre-training a copy of an image would have ids of its own. The 6 portraits are
    fewer than a batch of 7."""
    sampler = GroupedBatchSampler(RATIOS, batch_size, world_size=world_size)
    for epoch in range(10):
        for batch in sampler.global_batches(epoch):
            assert len(set(batch)) == len(batch) == batch_size * world_size


def test_dataset_smaller_than_the_global_batch():
    """One portrait, three landscapes, batches of 2 x 4: images repeat, seeds do not."""
    sampler = GroupedBatchSampler([0.5, 2.0, 0.7, 0.8], 4, world_size=2)
    assert sampler.steps_per_epoch == 1
    (batch,) = sampler.global_batches(0)
    assert Counter(batch) == {0: 2, 1: 2, 2: 2, 3: 2}  # evenly
    keys = [key for batch in take(sampler, 2) for key in batch]
    assert len({key.seed for key in keys}) == len(keys) == 8


def test_one_group_only():
    sampler = GroupedBatchSampler([0.5] * 5, 2)
    assert sampler.steps_per_epoch == 3
    assert {key.index for batch in take(sampler, 3) for key in batch} == set(range(5))


@pytest.mark.parametrize("world_size", [2, 3])
def test_slices_of_the_ranks_are_the_batch_of_one_rank(world_size):
    one = take(GroupedBatchSampler(RATIOS, 2 * world_size, seed=5), 30)
    ranks = [
        take(GroupedBatchSampler(RATIOS, 2, rank, world_size, seed=5), 30)
        for rank in range(world_size)
    ]
    for step, batch in enumerate(one):
        assert [key for rank in ranks for key in rank[step]] == batch
        assert all(len(rank[step]) == 2 for rank in ranks)


def test_order_is_reseeded_each_epoch_and_depends_on_the_seed():
    def order(seed, epoch):
        sampler = GroupedBatchSampler(RATIOS, 3, seed=seed)
        steps = sampler.steps_per_epoch
        return [
            tuple(key.index for key in b)
            for b in take(sampler, steps * (epoch + 1))[steps * epoch :]
        ]

    orders = [tuple(order(seed, epoch)) for seed in range(3) for epoch in range(3)]
    assert len(set(orders)) == 9
    assert order(1, 1) == order(1, 1)
    # The groups come interleaved, not one after the other.
    starts = {tuple(RATIOS[batch[0]] > 1 for batch in one) for one in orders}
    assert len(starts) > 3


@pytest.mark.parametrize("start", [0, 1, 5, 6, 7, 12, 13, 29])
def test_start_step_resumes_where_an_uninterrupted_run_would_be(start):
    whole = take(GroupedBatchSampler(RATIOS, 3, seed=2), 45)  # 6 steps per epoch
    resumed = take(GroupedBatchSampler(RATIOS, 3, seed=2, start_step=start), 45 - start)
    assert resumed == whole[start:]
    rank = take(GroupedBatchSampler(RATIOS, 1, 2, 3, seed=2, start_step=start), 45 - start)
    assert rank == [batch[2:] for batch in whole[start:]]


def test_iterating_again_starts_at_start_step_again():
    sampler = GroupedBatchSampler(RATIOS, 3, start_step=4)
    assert take(sampler, 9) == take(sampler, 9)


def test_sample_seeds_differ_between_epochs_steps_and_places():
    keys = [key for batch in take(GroupedBatchSampler(RATIOS, 3), 60) for key in batch]
    assert len({key.seed for key in keys}) == len(keys) == 180
    other = [key for batch in take(GroupedBatchSampler(RATIOS, 3, seed=1), 60) for key in batch]
    assert not {key.seed for key in keys} & {key.seed for key in other}


def flatten(value):
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return [tensor for item in value for tensor in flatten(item)]
    return []


def assert_same_batches(first, second, tensors):
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert len(flatten(a)) == len(flatten(b)) == tensors
        assert all(torch.equal(x, y) for x, y in zip(flatten(a), flatten(b), strict=True))


def test_workers_change_no_bit_of_two_views(coco):
    dataset = TwoViewDataset(coco, Augment((20, 30), photometric=True), max_proposals=None)
    runs = []
    for workers in (0, 2):
        sampler = GroupedBatchSampler(coco.aspect_ratios, 3, seed=4)
        loader = train_loader(dataset, sampler, collate_views, workers)
        torch.manual_seed(workers)  # the samples do not use global random state
        runs.append(list(itertools.islice(iterate(loader), 6)))
    assert_same_batches(*runs, tensors=2 * (1 + 1 + 3))


def test_ranks_load_what_one_process_loads(coco):
    dataset = DetectionDataset(coco, Augment((20, 30), photometric=True))
    loaders = [
        train_loader(
            dataset,
            GroupedBatchSampler(coco.aspect_ratios, size, rank, world, seed=4),
            collate_detection,
            workers=0,
        )
        for size, rank, world in ((4, 0, 1), (2, 0, 2), (2, 1, 2))
    ]
    for whole, first, second in itertools.islice(zip(*map(iterate, loaders), strict=True), 8):
        assert whole["image_ids"] == first["image_ids"] + second["image_ids"]
        halves = first["targets"] + second["targets"]
        for a, b in zip(whole["targets"], halves, strict=True):
            assert torch.equal(a["boxes"], b["boxes"])
        sizes = torch.cat([first["image_sizes"], second["image_sizes"]])
        assert torch.equal(whole["image_sizes"], sizes)
        for n, (h, w) in enumerate(sizes.tolist()):
            half = (first, second)[n // 2]["images"][n % 2]
            assert torch.equal(whole["images"][n, :, :h, :w], half[:, :h, :w])


@pytest.mark.parametrize("world_size", [1, 2, 3, 20])
@pytest.mark.parametrize("batch_size", [1, 4, 50])
def test_eval_shards_hold_every_image_once(world_size, batch_size):
    shards = []
    for rank in range(world_size):
        loader = eval_loader(Keys(17), RATIOS, list, batch_size, 0, rank, world_size)
        batches = list(iterate(loader))
        assert len(batches) == len(loader)
        assert all(1 <= len(batch) <= batch_size for batch in batches)
        ratios = [RATIOS[key.index] for batch in batches for key in batch]
        assert ratios == sorted(ratios)
        shards.append([key.index for batch in batches for key in batch])
    assert sorted(itertools.chain(*shards)) == list(range(17))
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


def test_eval_loader_with_workers_repeats_itself(coco):
    dataset = DetectionDataset(coco, Augment((30,), flip=0.0))
    runs = [
        list(iterate(eval_loader(dataset, coco.aspect_ratios, collate_detection, 4, workers)))
        for workers in (0, 1)
    ]
    assert sorted(i for batch in runs[0] for i in batch["image_ids"]) == list(range(1, 11))
    assert [b["image_ids"] for b in runs[0]] == [b["image_ids"] for b in runs[1]]
    assert len(runs[0]) == 3
    for a, b in zip(*runs, strict=True):
        assert torch.equal(a["images"], b["images"])


@pytest.mark.parametrize("workers", [0, 1])
def test_data_errors_of_workers_arrive_as_one_line(coco, workers):
    path = coco.images / "4.png"
    path.write_bytes(path.read_bytes()[:60])  # broken after the dataset was checked
    dataset = DetectionDataset(coco, Augment((30,)))
    loader = eval_loader(dataset, coco.aspect_ratios, collate_detection, 4, workers)
    running = set(multiprocessing.active_children())
    with pytest.raises(DataError) as error:
        list(iterate(loader))
    message = str(error.value)
    assert message.startswith(f"{path}: image is truncated or unreadable")
    assert message.endswith("replace it or remove its entry")
    assert "\n" not in message
    assert error.value.__cause__ is None
    assert error.value.__context__ is None or error.value.__suppress_context__
    assert not set(multiprocessing.active_children()) - running


def test_other_errors_are_left_alone():
    bug = KeyError("a bug")
    with pytest.raises(KeyError) as error:
        list(iterate(eval_loader(Failing(bug), [1.0] * 4, list, 1, workers=0)))
    assert error.value is bug


def test_batches_before_an_error_are_delivered():
    got = []
    loader = eval_loader(Failing(DataError("x.jpg: broken; replace it")), [1.0] * 4, list, 1, 0)
    with pytest.raises(DataError, match=r"^x.jpg: broken; replace it$"):
        got.extend(batch[0].index for batch in iterate(loader))
    assert got == [0, 1]


def test_to_device_moves_what_is_nested():
    batch = {"a": torch.ones(2), "b": [torch.zeros(1), {"c": (torch.ones(3), 5, "x")}], "d": None}
    moved = to_device(batch, torch.device("meta"))
    assert [t.device.type for t in flatten(moved)] == ["meta"] * 3
    assert moved["b"][1]["c"][1:] == (5, "x")
    assert isinstance(moved["b"][1]["c"], tuple)
    assert moved["d"] is None
    assert batch["a"].device.type == "cpu"


def test_image_sizes_stay_on_the_host():
    """The models use them as numbers, for which a GPU would have to be asked."""
    sizes = torch.tensor([[4, 6]])
    views = ({"images": torch.ones(1, 3, 4, 6), "image_sizes": sizes}, {"image_sizes": sizes})
    moved = to_device(views, torch.device("meta"))
    assert moved[0]["images"].device.type == "meta"
    assert all(view["image_sizes"] is sizes for view in moved)


def test_evaluation_pins_if_asked():
    def pins(**options):
        return eval_loader(Keys(4), [1.0] * 4, list, 2, workers=1, **options).pin_memory

    assert [pins(), pins(pin_memory=False), pins(pin_memory=True)] == [False, False, True]


def test_sample_key_names_its_parts():
    key = take(GroupedBatchSampler([1.0], 1), 1)[0][0]
    assert isinstance(key, SampleKey)
    assert key.index == 0
    assert isinstance(key.seed, str)
