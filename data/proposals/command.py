"""Boxes for your own images in one command: selective search, filter, NMS, COCO JSON.

    python -m data.proposals --images DIR --output FILE.json [--source search|gt|RESULTS.json]
        [--format json|packed] [--annotations FILE.json] [--filter ratio3size0008] [--nms 0.5]
        [--max-boxes N] [--min-side PIXELS] [--masks] [--search fast|thorough]
        [--search-side PIXELS] [--workers N] [--batch N] [--max-pixels N]
        [--device cpu|cuda] [--exif stored|apply] [--value-range LOW HIGH]
        [--skip-bad] [--allow-outside] [--recall ANNOTATIONS.json] [--draw DIR] [--font FILE]

Every proposal becomes an annotation of the one category `object` with a score that falls with
its rank; box-domain pre-training reads the file in place of labels. With `--masks` it also has the
mask of the region that the box was drawn around. The result does not depend on
the number of processes, on the batch, or on how often the run was killed: finished images are kept
in a journal beside the output, and the same command resumes from there. If the output is there
already, the same command searches nothing; `--recall` and `--draw` then show what it holds. Images
that cannot be used are named and left out.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from data import stopping
from data.counting import count
from data.drawing import check_apart, picture_path
from data.errors import DataError
from data.fonts import CaptionFont
from data.image_check import StatedSizes, check_reading, reading_entry
from data.images import AS_STORED, ImageReading
from data.plain_text import say
from data.proposals.existing import record, take_existing, without
from data.proposals.journal import Journal
from data.proposals.options import parse_arguments, read_settings
from data.proposals.output import report_bad, write_proposals
from data.proposals.pictures import draw_sample
from data.proposals.propose import SEARCH_VERSION, ProposalSettings
from data.proposals.report import print_mask_recall, print_recall, print_summary
from data.proposals.sources import (
    ObjectMasks,
    Work,
    list_work,
    object_masks_by_file,
    objects_by_file,
)
from data.proposals.workers import (
    Bad,
    Found,
    Job,
    file_state,
    propose_files,
    propose_files_on_device,
    size_problem,
)


class _Proposals(NamedTuple):
    """What there is to show."""

    files: Sequence[str]  # of the images
    boxes_of: Callable[[str], np.ndarray]  # gives (P, 4) xyxy
    masks_of: Callable[[str], Sequence[bytes] | None] | None  # of these boxes, if they have any


class _Truth(NamedTuple):
    """Objects by file."""

    boxes: dict[str, Tensor]  # (M, 4) xyxy
    masks: dict[str, ObjectMasks]  # empty without --masks


def run_digest(
    directory: Path | None,
    work: Work,
    settings: ProposalSettings,
    reading: ImageReading = AS_STORED,
    device: str = "cpu",
) -> str:
    """Digest of all that the boxes depend on, given boxes included, but the images' content.

    Every device should find the same boxes. A journal names its device all the same, so that one
    file never holds boxes of two.

    Args:
        directory: folder of the images; None if it may be another for the same images.
        work: the images and given boxes.
        settings: of the search.
        reading: how the images are read.
        device: where the images are searched, for a journal.
    """
    basis = {
        "search": SEARCH_VERSION,
        "images": directory and str(directory.resolve()),
        "settings": settings.named(),
    }
    if reading != AS_STORED:  # left out otherwise, so that older journals can be resumed
        basis["reading"] = reading.look()
    if device != "cpu":  # left out otherwise, as above
        basis["device"] = device
    digest = hashlib.sha256(json.dumps(basis, sort_keys=True).encode())
    for job in work.jobs:
        if job.boxes is not None:
            digest.update(json.dumps([job.file, len(job.boxes)]).encode())
            digest.update(job.boxes.tobytes())
        for mask in job.masks or ():
            digest.update(mask + b"\n")
    return digest.hexdigest()


def unfinished(directory: Path, jobs: Sequence[Job], journal: Journal) -> list[Job]:
    """Jobs whose image is not in the journal, has changed since or has another size than listed."""
    left = []
    for job in jobs:
        try:
            size = journal.find(job.file, file_state(directory / job.file))
        except OSError:  # missing: the attempt to read it says so
            size = None
        if size is None or size_problem(directory / job.file, job, size):
            left.append(job)
    return left


def _outcomes(
    options: argparse.Namespace,
    jobs: Sequence[Job],
    settings: ProposalSettings,
    reading: ImageReading,
) -> Iterator[Found | Bad]:
    directory, how = Path(options.images), (options.workers, options.batch, reading)
    if options.device == "cpu":
        return propose_files(directory, jobs, settings, *how)
    device = torch.device(options.device)
    return propose_files_on_device(directory, jobs, settings, device, *how)


def _check_pending(options: argparse.Namespace, jobs: Sequence[Job], reading: ImageReading) -> None:
    """Say what is known from the headers; raise a DataError if another `reading` is needed."""
    stated = None
    if options.annotations is not None:
        stated = StatedSizes(options.annotations, [job.size for job in jobs])
    files = [job.file for job in jobs]
    for note in check_reading(options.images, files, reading, stated):
        _say(note)


def _finish(
    options: argparse.Namespace,
    work: Work,
    settings: ProposalSettings,
    reading: ImageReading,
    journal: Journal,
) -> dict[str, Bad]:
    """Process what the journal lacks; returns the images that cannot be used, by file name."""
    pending = unfinished(Path(options.images), work.jobs, journal)
    total, bad = len(work.jobs), {}
    done = total - len(pending)
    if done:
        _say(f"resuming: {done:,} of {total:,} images are done")
    try:
        _check_pending(options, pending, reading)
    except DataError:
        if not len(journal):
            journal.remove()
        raise
    with tqdm(total=total, initial=done, unit="image", desc="proposals") as progress:
        for outcome in _outcomes(options, pending, settings, reading):
            if isinstance(outcome, Bad):
                bad[outcome.file] = outcome
            else:
                journal.add(outcome)
            progress.update()
    return bad


def _run(
    options: argparse.Namespace, settings: ProposalSettings, reading: ImageReading, work: Work
) -> int:
    """Run the command with its options read; returns the exit status."""
    start = time.perf_counter()
    directory, output = Path(options.images), Path(options.output)
    listed = [job.file for job in work.jobs]
    _check_paths(options, listed)
    truth = _read_truth(options, listed) if options.recall else None
    made = record(
        directory,
        listed,
        run_digest(None, work, settings, reading),
        {"search_version": SEARCH_VERSION, **settings.named(), **reading.look()},
    )
    packed = options.format == "packed"
    path = output.with_name(f".{output.name}.partial.jsonl")
    if not path.exists():
        as_it_is = bool(options.recall or options.draw)
        existing = take_existing(output, work, made, as_it_is, options.skip_bad, packed, _say)
        if existing is not None:
            held = _Proposals(existing.files, existing.boxes, existing.masks)
            _show(options, reading, truth, held)
            print_summary(output, len(existing.files), existing.count, start)
            return 0
    digest = run_digest(directory, work, settings, reading, options.device)
    with Journal(path, digest, _say) as journal:
        bad = _finish(options, work, settings, reading, journal)
        ordered = [bad[file] for file in listed if file in bad]
        report_bad(ordered, len(work.jobs), output, options.skip_bad)
        files = [file for file in listed if file not in bad]
        if not files:
            if not len(journal):
                journal.remove()
            raise DataError(f"{directory}: none of the {len(bad):,} images can be used")
        entries = {entry["file_name"]: entry for entry in work.entries}
        images = [_complete(entries[file], journal.size(file)) for file in files]
        info = {**reading_entry(reading), **without(made, bad)}
        masks_of = journal.masks if settings.masks else None
        boxes = write_proposals(images, journal.boxes, output, info, packed, masks_of)
        _show(options, reading, truth, _Proposals(files, journal.boxes, masks_of))
        print_summary(output, len(files), boxes, start)
        if bad and not options.skip_bad:
            return 1  # the journal stays: once the images are mended, only they are searched
        journal.remove()
    return 0


def _check_paths(options: argparse.Namespace, files: Sequence[str]) -> None:
    if Path(options.output).is_dir():
        raise DataError(f"{options.output}: is a directory; give --output the name of a file")
    if options.draw:
        pictures = (picture_path(Path(options.draw), file, "jpg") for file in files)
        check_apart(Path(options.images), pictures)
        CaptionFont(options.font)  # an unusable one is noticed before the search


def _show(
    options: argparse.Namespace,
    reading: ImageReading,
    truth: _Truth | None,
    found: _Proposals,
) -> None:
    """Print the recall and draw pictures, if the options ask for them."""
    if truth is not None:
        print_recall(truth.boxes, found.files, found.boxes_of)
        if found.masks_of is not None:
            print_mask_recall(truth.masks, found.files, found.masks_of)
    if options.draw:
        font = CaptionFont(options.font)
        if notice := font.notice("123456789"):
            _say(notice)
        images, directory = Path(options.images), Path(options.draw)
        files, boxes_of, masks_of = found
        pictures = draw_sample(images, files, boxes_of, directory, reading, font, masks_of)
        print(f"{count(len(pictures), 'picture')}: {options.draw}")


def _complete(entry: dict[str, Any], size: tuple[int, int]) -> dict[str, Any]:
    return {**entry, "width": size[1], "height": size[0]}


def _read_truth(options: argparse.Namespace, files: Sequence[str]) -> _Truth:
    """The objects of `--recall`; it must list one of the files of the run."""
    given = (options.recall, Path(options.images), options.allow_outside)
    boxes = objects_by_file(*given)
    if boxes.keys().isdisjoint(files):
        raise DataError(
            f"{options.recall}: lists none of the images searched; give their annotations"
        )
    return _Truth(boxes, object_masks_by_file(*given) if options.masks else {})


def _say(sentence: str) -> None:
    say(sentence, sys.stderr)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, 1 for bad data, 2 for a bad option,
    128 and its number after a signal."""
    options = parse_arguments(arguments)
    try:
        settings = read_settings(options)
        reading = ImageReading(options.exif, options.value_range, options.max_pixels)
    except ValueError as error:
        _say(f"error: {error}")
        return 2
    try:
        with stopping.signals():
            given = (options.annotations, options.source)
            images, outside = Path(options.images), options.allow_outside
            work = list_work(images, *given, reading, outside, options.masks)
            for sentence in (work.left_out or "").splitlines():
                _say(sentence)
            return _run(options, settings, reading, work)
    except (DataError, OSError) as error:
        _say(f"error: {error}")
        return 1
    except stopping.Stopped as stop:
        _say(f"{stop}; the same command goes on from here")
        return stop.status
