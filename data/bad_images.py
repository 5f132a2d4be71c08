"""Images that cannot be used, with `data.on_bad_image=skip`: in training another image takes the
place of each, evaluation goes without them.

Which one takes its place depends on the sample's key and on which files are bad, on nothing else:
ranks, workers and resumed runs agree, whether a file was found bad at the start or when it was
read. A file that is missing or that the disk does not give still ends the run.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

from torch.utils.data import Dataset

from data.counting import count
from data.errors import DataError
from data.images import BadFile, BadImage
from data.views import SampleKey

Note: TypeAlias = Callable[[Sequence[BadFile]], None]  # takes files that could not be used
TRIES = 100  # images of each kind, in place of one; if all are bad, something else is wrong


class Read(NamedTuple):
    """What became of a sample."""

    sample: Any  # None: left out
    bad: tuple[BadFile, ...]  # images that could not be used for it
    index: int | None = None  # of the image, in training


class Noted(NamedTuple):
    """A batch with the news about its images."""

    batch: Any  # None: all of its samples were left out
    bad: tuple[BadFile, ...]


class Replacing(Dataset[Read]):
    """A dataset for training, another image in place of each bad one.

    Args:
        dataset: indexed by `SampleKey`; a `BadImage` from it is what this is about.
        aspect_ratios: height / width of every image. A portrait takes the place of a portrait if
            one can be used, or the batch would need much padding.
    """

    def __init__(self, dataset: Dataset[Any], aspect_ratios: Sequence[float]) -> None:
        self.dataset = dataset
        self.portrait = bytes(ratio > 1 for ratio in aspect_ratios)

    def __len__(self) -> int:
        return len(self.portrait)

    def __getitem__(self, key: SampleKey) -> Read:
        """The sample of a key; if its image is bad, of the same key with another index.

        Raises:
            DataError: many others are bad as well.
        """
        bad = []
        for index in self._candidates(key):
            try:
                return Read(self.dataset[key._replace(index=index)], tuple(bad), index)
            except BadImage as error:
                bad.append(error.bad_file)
        raise DataError(
            f"{bad[0].reason}; none of {count(len(bad) - 1, 'other image')} could be used in its "
            "place"
        )

    def _candidates(self, key: SampleKey) -> Iterator[int]:
        yield key.index
        draw, kind = random.Random(f"instead {key.seed}"), self.portrait[key.index]
        for wanted in (kind, 1 - kind):
            some = [i for i, k in enumerate(self.portrait) if k == wanted and i != key.index]
            yield from draw.sample(some, min(TRIES, len(some)))


class LeavingOut(Dataset[Read]):
    """A dataset for evaluation without bad images: objects in them count as not found."""

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: SampleKey) -> Read:
        """The sample of a key, or None."""
        try:
            return Read(self.dataset[key], ())
        except BadImage as error:
            return Read(None, (error.bad_file,))


@dataclass(frozen=True)
class NotingCollate:
    """Makes a batch of what the datasets above give."""

    collate: Callable[[list[Any]], Any]  # of samples
    distinct: bool = False  # leave out an image in place of a bad one, if the batch has it already

    def __call__(self, reads: Sequence[Read]) -> Noted:
        """The batch of the samples that are there, and the news of all."""
        there = {read.index for read in reads if not read.bad}
        samples = []
        for read in reads:
            twice = self.distinct and read.bad and read.index in there
            if read.sample is not None and not twice:
                samples.append(read.sample)
                there.add(read.index)
        bad = tuple(file for read in reads for file in read.bad)
        return Noted(self.collate(samples) if samples else None, bad)


def say_nothing(bad: Sequence[BadFile]) -> None:
    """For who does not keep a list."""


def without_news(batches: Iterable[Any], note: Note) -> Iterator[Any]:
    """Yield the batches themselves; what there is to tell goes to `note` first.

    Args:
        batches: from a loader, with `NotingCollate` or without.
        note: takes the files that could not be used, often none.
    """
    for batch in batches:
        if isinstance(batch, Noted):
            note(batch.bad)
            batch = batch.batch
        if batch is not None:
            yield batch
