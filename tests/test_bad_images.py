"""With data.on_bad_image=skip, another image takes the place of a bad one, the same one everywhere,
and evaluation goes without it."""

from __future__ import annotations

import pickle

import pytest

from data.bad_images import LeavingOut, Noted, NotingCollate, Read, Replacing, without_news
from data.errors import DataError
from data.images import BadFile, BadImage
from data.views import SampleKey


class Some:
    """Samples are their keys; the images of some indices are bad."""

    def __init__(self, bad, images=10, error=BadImage):
        self.bad, self.images, self.error = set(bad), images, error

    def __len__(self):
        return self.images

    def __getitem__(self, key):
        if key.index in self.bad:
            raise self.error(f"{key.index}.jpg: bad", f"{key.index}.jpg")
        return key


def file(index):
    return BadFile(f"{index}.jpg", f"{index}.jpg: bad")


KEYS = [SampleKey(3, f"sample {number}") for number in range(200)]
SQUARE = [1.0] * 10


def test_good_images_are_themselves():
    dataset = Replacing(Some([3]), SQUARE)
    assert len(dataset) == 10
    assert dataset[SampleKey(4, "a")] == Read(SampleKey(4, "a"), (), 4)


def test_another_image_takes_the_place_with_the_same_seed():
    dataset = Replacing(Some([3, 5, 6]), SQUARE)
    reads = [dataset[key] for key in KEYS]
    assert [read.sample.seed for read in reads] == [key.seed for key in KEYS]
    assert {read.sample.index for read in reads} == {0, 1, 2, 4, 7, 8, 9}
    assert all(read.bad[0] == file(3) for read in reads)
    assert {read.bad for read in reads} == {
        (file(3),), (file(3), file(5)), (file(3), file(6)), (file(3), file(5), file(6)),
        (file(3), file(6), file(5)),
    }  # fmt: skip


def test_the_choice_depends_on_the_key_and_the_bad_files_alone():
    one, two = Replacing(Some([3, 5]), SQUARE), Replacing(Some([3, 5]), SQUARE)
    assert [one[key] for key in KEYS] == [two[key] for key in reversed(KEYS)][::-1]
    more = Replacing(Some([3, 5, 8]), SQUARE)
    for key in KEYS:  # one more bad file changes only the samples that it would have been
        same = one[key].sample == more[key].sample
        assert same or one[key].sample.index == 8


def test_portraits_take_the_place_of_portraits():
    ratios = [1.5 if index % 2 else 0.7 for index in range(10)]
    dataset = Replacing(Some([3, 4]), ratios)
    assert {dataset[key].sample.index for key in KEYS} == {1, 5, 7, 9}
    keys = [key._replace(index=4) for key in KEYS]
    assert {dataset[key].sample.index for key in keys} == {0, 2, 6, 8}
    # Any other image, if there is no such.
    dataset = Replacing(Some([0, 3], 5), [1.5, 1.5, 1.5, 0.7, 1.5])
    assert {dataset[key].sample.index for key in KEYS} == {1, 2, 4}


@pytest.mark.parametrize(("images", "others"), [(10, "9 other images"), (300, "100 other images")])
def test_if_all_are_bad_the_first_is_named(images, others):
    with pytest.raises(DataError, match=rf"^3\.jpg: bad; none of {others} could be used") as error:
        Replacing(Some(range(images), images), [1.0] * images)[KEYS[0]]
    assert not isinstance(error.value, BadImage)


@pytest.mark.parametrize("kind", [lambda dataset: Replacing(dataset, SQUARE), LeavingOut])
def test_a_file_that_cannot_be_reached_ends_the_run(kind):
    dataset = kind(Some([3], error=lambda reason, path: DataError(reason)))
    with pytest.raises(DataError, match=r"3\.jpg: bad"):
        dataset[KEYS[0]]


def test_evaluation_goes_without_it():
    dataset = LeavingOut(Some([3]))
    assert len(dataset) == 10
    assert dataset[SampleKey(3, "a")] == Read(None, (file(3),))
    assert dataset[SampleKey(4, "a")] == Read(SampleKey(4, "a"), ())


def test_no_image_is_in_a_batch_twice_because_another_is_bad():
    dataset, collate = Replacing(Some([3, 5]), SQUARE), NotingCollate(list, distinct=True)
    for number in range(50):
        keys = [SampleKey(index, f"step {number} {index}") for index in range(10)]
        batch, bad = collate([dataset[key] for key in keys])
        assert [key.index for key in batch] == [0, 1, 2, 4, 6, 7, 8, 9]
        assert set(bad) == {file(3), file(5)}
    # One that stands alone in place of two is there once.
    two = [Read("a", (file(3),), 7), Read("b", (file(5),), 7), Read("c", (), 1)]
    assert collate(two).batch == ["a", "c"]
    # A batch that has an image twice by itself, since there are too few, keeps it.
    assert collate([Read("a", (), 1), Read("b", (), 1)]).batch == ["a", "b"]
    # Other stages need batches of one size, and may see an image twice.
    assert NotingCollate(list)(two).batch == ["a", "b", "c"]


def test_a_batch_brings_the_news():
    collate = pickle.loads(pickle.dumps(NotingCollate(list)))  # as processes are given it
    mixed = collate([Read("a", ()), Read(None, (file(3),)), Read("b", (file(5), file(6)))])
    assert mixed == Noted(["a", "b"], (file(3), file(5), file(6)))
    empty = collate([Read(None, (file(3),))])
    assert empty == Noted(None, (file(3),))
    told = []
    batches = list(without_news([mixed, {"plain": 1}, empty], told.append))
    assert batches == [["a", "b"], {"plain": 1}]
    assert told == [mixed.bad, empty.bad]
