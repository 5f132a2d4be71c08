"""The input of a study's runs: proposals of each data set, its label fractions, and the part of
its training photographs that is put aside for choices.

Files are made when a run first needs them, in the folder of the study's runs.
"""

from __future__ import annotations

import hashlib
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data.coco_json import load_coco
from data.json_files import write_json_atomic
from data.subset import FOLDS, subset
from experiments.study import DataSet, Start, prefix

TUNE_EVERY = 5  # one training photograph in so many is put aside


def put_aside(file_name: str) -> bool:
    """Whether a training photograph belongs to the part on which choices are made: a fifth, by a
    hash of its name."""
    return hashlib.sha256(file_name.encode()).digest()[0] % TUNE_EVERY == 0


def part(content: dict[str, Any], aside: bool) -> dict[str, Any]:
    """A COCO dict with those images that are put aside, or those that are not."""
    images = [image for image in content["images"] if put_aside(image["file_name"]) == aside]
    ids = {image["id"] for image in images}
    annotations = [a for a in content["annotations"] if a["image_id"] in ids]
    return content | {"images": images, "annotations": annotations}


def labels_folder(work: Path, data: DataSet) -> Path:
    """Where the parts of a set's labels are."""
    return work / "labels" / Path(data.train_annotations).with_suffix("")


def tune_file(work: Path, data: DataSet) -> Path:
    """The labelled boxes of the photographs that are put aside."""
    return labels_folder(work, data) / "tune.json"


def labels_file(
    root: Path, work: Path, data: DataSet, percent: float, seed: int, split: str
) -> Path:
    """The labelled boxes of a cell: all, or a fold of `data.subset`, a different one per seed."""
    if percent == 100 and split == "val":
        return root / data.train_annotations
    name = f"{prefix(split)}{percent:g}percent_fold{seed % FOLDS}.json"
    return labels_folder(work, data) / name


def make_labels(
    root: Path, work: Path, data: DataSet, percent: float, seed: int, split: str
) -> None:
    """Write `labels_file`, and `tune_file` if it is needed, unless they exist."""
    output = labels_file(root, work, data, percent, seed, split)
    if output.exists():
        return
    content = load_coco(root / data.train_annotations)
    if split == "tune":
        write_json_atomic(part(content, aside=True), tune_file(work, data))
        content = part(content, aside=False)
    write_json_atomic(subset(content, percent, seed % FOLDS), output)


def proposals_file(work: Path, data: DataSet, start: Start, split: str) -> Path:
    """The boxes of a pre-training, of all its photographs."""
    name = "+".join(folder.replace("/", "_") for folder in folders_of(data, start))
    kind = f"{start.proposals}{'_own_half' if start.own_half else ''}"
    return work / "proposals" / f"{prefix(split)}{name}_{kind}.json"


def make_proposals(root: Path, work: Path, data: DataSet, start: Start, split: str) -> None:
    """Write `proposals_file`, unless it exists; its file names are relative to `root`.

    It reads no validation photograph, none that is put aside if `split` is "tune", and no label
    unless these are the proposals.
    """
    output = proposals_file(work, data, start, split)
    if output.exists():
        return
    parts = []
    for folder in folders_of(data, start):
        labelled = start.proposals == "labels" and folder == data.train_images
        with_masks = start.proposals == "masks"
        boxes = (
            root / data.train_annotations if labelled else _searched(root, work, folder, with_masks)
        )
        content = load_coco(boxes)
        if split == "tune" and folder == data.train_images:
            content = part(content, aside=False)
        parts.append((folder, content))
    if start.own_half:
        parts = own_half(parts)
    content = merged(parts)
    write_json_atomic(moved(content) if start.proposals == "random" else content, output)


def own_half(parts: list[tuple[str, dict[str, Any]]]) -> list[tuple[str, dict[str, Any]]]:
    """The first part as often as brings its images nearest to the number of all others."""
    own, *others = (len(content["images"]) for _, content in parts)
    return [*parts[:1] * max(1, round(sum(others) / own)), *parts[1:]]


def folders_of(data: DataSet, start: Start) -> tuple[str, ...]:
    """Folders of the photographs that a pre-training sees."""
    return (data.train_images, *(data.unlabelled if start.unlabelled else ()))


def _searched(root: Path, work: Path, folder: str, with_masks: bool) -> Path:
    """The boxes of one folder, whose file names are relative to it; apart from `proposals_file`,
    which may have the same name."""
    name = f"{folder.replace('/', '_')}{'_masks' if with_masks else ''}.json"
    output = work / "searched" / name
    if not output.exists():
        command = ["-m", "data.proposals", "--images", str(root / folder), "--output", str(output)]
        command += ["--masks"] if with_masks else []
        subprocess.run([sys.executable, *command], check=True)
    return output


def merged(parts: Sequence[tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    """Merge COCO dicts, each given with the folder of its images, into one with new ids."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for folder, content in parts:
        ids = {image["id"]: len(images) + i for i, image in enumerate(content["images"], start=1)}
        images += [
            image | {"id": ids[image["id"]], "file_name": f"{folder}/{image['file_name']}"}
            for image in content["images"]
        ]
        annotations += [a | {"image_id": ids[a["image_id"]]} for a in content["annotations"]]
    numbered = [a | {"id": number} for number, a in enumerate(annotations, start=1)]
    return {"images": images, "annotations": numbered, "categories": parts[0][1]["categories"]}


def moved(content: dict[str, Any]) -> dict[str, Any]:
    """Move each box to a uniformly random place in its image; its size is kept.

    So an image has as many boxes, of the same sizes and shapes, as before. Only what the search is
    for is lost: that there is something in them.
    """
    rng = random.Random("moved boxes")
    sizes = {image["id"]: (image["width"], image["height"]) for image in content["images"]}
    annotations = []
    for annotation in content["annotations"]:
        _, _, w, h = annotation["bbox"]
        width, height = sizes[annotation["image_id"]]
        x, y = rng.random() * max(0, width - w), rng.random() * max(0, height - h)
        annotations.append(annotation | {"bbox": [x, y, w, h]})
    return content | {"annotations": annotations}
