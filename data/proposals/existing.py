"""The file that an earlier run wrote: if it fits, its boxes are taken and nothing is searched.

Legend: P proposals.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data.coco_file import open_coco
from data.coco_json import load_coco
from data.coco_masks import CocoMasks, open_masks
from data.errors import DataError
from data.packed_coco import PackedCoco
from data.packed_file import is_packed
from data.proposals.sources import Work

RECORD = "proposals"  # in the file's `info`


@dataclass(frozen=True)
class Existing:
    """The images and boxes of a file of proposals."""

    files: list[str]  # of the images
    count: int  # of the boxes
    xywh: Callable[[str], np.ndarray]  # (P, 4) float64 boxes of an image, best first
    # Of the same boxes, as in `Job`; None: they have none.
    masks: Callable[[str], Sequence[bytes]] | None = None

    def boxes(self, file: str) -> np.ndarray:
        """(P, 4) float64 xyxy boxes of an image, best first, as they were before they were
        written."""
        xywh = self.xywh(file)
        return np.concatenate([xywh[:, :2], (xywh[:, :2] + xywh[:, 2:]).round(2)], axis=1)


def record(
    directory: Path, files: Sequence[str], digest: str, options: Mapping[str, Any]
) -> dict[str, Any]:
    """What `info` says about how a file was made, by which `take_existing` knows it again.

    Args:
        directory: folder of the images, which may move.
        files: of all images, relative to it; by their sizes in bytes, changed ones are noticed,
            except a picture without compression in place of another of the same size.
        digest: of all that the boxes depend on but the images.
        options: the same as far as it comes from options, for messages.
    """
    basis = hashlib.sha256(digest.encode())
    for file in files:
        try:
            size = os.stat(directory / file).st_size
        except OSError:
            size = None
        basis.update(json.dumps([file, size]).encode())
    plain = json.loads(json.dumps(options))  # tuples become lists, as in the file
    return {RECORD: {"digest": basis.hexdigest(), "options": plain, "left_out": []}}


def without(made: Mapping[str, Any], files: Iterable[str]) -> dict[str, Any]:
    """A `record` of a run that could not use the images `files`."""
    return {RECORD: {**made[RECORD], "left_out": sorted(files)}}


def take_existing(
    output: Path,
    work: Work,
    expected: Mapping[str, Any],
    as_it_is: bool,
    skip_bad: bool,
    packed: bool,
    say: Callable[[str], None],
) -> Existing | None:
    """Read the output of an earlier run, if it is what this one would write.

    Args:
        output: the file; it may be missing.
        work: the images of this run.
        expected: `record` of this run, with no image left out.
        as_it_is: also take a file without a record, if it lists only images of this run.
        packed: whether this one would write a packed file; one of the other format is not taken.
        skip_bad: also take a file that lacks images which could not be used.
        say: called with a sentence about the file.

    Returns:
        Its boxes; None if they must be found again.
    """
    if not output.exists() or is_packed(output) != packed:
        return None
    try:
        coco = open_coco(output)
    except DataError as error:
        say(f"{error}: searching again")
        return None
    theirs = coco.info.get(RECORD) if isinstance(coco.info, dict) else None
    if not isinstance(theirs, dict) or theirs.keys() != expected[RECORD].keys():
        files = set(coco.names)
        known = files <= {job.file for job in work.jobs}
        if not (as_it_is and files and known):
            return None
        say(
            f"{output}: does not say how it was made; its boxes are taken as they are. Delete it "
            "to search again"
        )
        return _ours(output, coco, False) if is_packed(output) else _of_others(load_coco(output))
    difference = _difference(coco, theirs, work, expected[RECORD])
    if difference:
        say(f"{output}: was made with {difference}; searching again")
        return None
    if theirs["left_out"] and not skip_bad:
        return None  # perhaps they have been mended
    say(f"{output}: has the boxes of the same images and options; nothing is searched")
    return _ours(output, coco, "masks" in theirs["options"])


def _difference(
    coco: PackedCoco, theirs: Mapping[str, Any], work: Work, ours: Mapping[str, Any]
) -> str | None:
    changed = [
        f"{key} {json.dumps(theirs['options'].get(key))}, not {json.dumps(value)}"
        for key, value in {"masks": None, **ours["options"]}.items()
        if theirs["options"].get(key) != value
    ]
    if changed:
        return "; ".join(changed)
    left_out = set(theirs["left_out"])
    entries = [entry for entry in work.entries if entry["file_name"] not in left_out]
    same = len(entries) == len(coco) and all(
        {**written, **{key: entry[key] for key in written.keys() & entry.keys()}} == written
        for written, entry in zip(coco.images(), entries, strict=True)
    )
    return None if same and theirs["digest"] == ours["digest"] else "other images or given boxes"


def _ours(output: Path, coco: PackedCoco, has_masks: bool) -> Existing:
    """A file whose boxes are in the order in which they were found."""
    places = {file: place for place, file in enumerate(coco.names)}

    def rows(file: str) -> slice:
        return slice(*coco.starts[places[file] : places[file] + 2].tolist())

    @functools.cache
    def opened() -> CocoMasks:
        return open_masks(output, coco)

    def masks(file: str) -> list[bytes]:
        own = rows(file)
        return [opened().rle(row) for row in range(own.start, own.stop)]

    def xywh(file: str) -> np.ndarray:
        return coco.boxes(rows(file)).xywh

    return Existing(list(places), int(coco.starts[-1]), xywh, masks if has_masks else None)


def _of_others(content: Mapping[str, Any]) -> Existing:
    """A file of another program: its scores say which boxes are better."""
    annotations: dict[Any, list[dict[str, Any]]] = {e["id"]: [] for e in content["images"]}
    for annotation in content["annotations"]:
        annotations[annotation["image_id"]].append(annotation)
    for own in annotations.values():
        if all(isinstance(annotation.get("score"), (int, float)) for annotation in own):
            own.sort(key=lambda annotation: -annotation["score"])
    files = [entry["file_name"] for entry in content["images"]]
    by_file = dict(zip(files, annotations.values(), strict=True))

    def xywh(file: str) -> np.ndarray:
        return np.array([a["bbox"] for a in by_file[file]], dtype=float).reshape(-1, 4)

    return Existing(files, len(content["annotations"]), xywh)
