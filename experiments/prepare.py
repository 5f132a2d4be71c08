"""The input of a study's runs: proposals of each data set, and its label fractions.

Files are made when a run first needs them, in the folder of the study's runs.
"""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data.coco_json import load_coco
from data.json_files import write_json_atomic
from data.subset import FOLDS, subset
from experiments.study import DataSet


def labels_file(root: Path, work: Path, data: DataSet, percent: float, seed: int) -> Path:
    """The labelled boxes of a cell: all, or a fold of `data.subset`, a different one per seed."""
    if percent == 100:
        return root / data.train_annotations
    folder = work / "labels" / Path(data.train_annotations).with_suffix("")
    return folder / f"{percent:g}percent_fold{seed % FOLDS}.json"


def make_labels(root: Path, work: Path, data: DataSet, percent: float, seed: int) -> None:
    """Write `labels_file`, unless it exists."""
    output = labels_file(root, work, data, percent, seed)
    if not output.exists():
        content = subset(load_coco(root / data.train_annotations), percent, seed % FOLDS)
        write_json_atomic(content, output)


def proposals_file(work: Path, data: DataSet, kind: str) -> Path:
    """The boxes of a pre-training: of the train and the unlabelled photographs, in one file."""
    name = "+".join(folder.replace("/", "_") for folder in folders_of(data))
    return work / "proposals" / f"{name}_{kind}.json"


def make_proposals(root: Path, work: Path, data: DataSet, kind: str) -> None:
    """Write `proposals_file`, unless it exists; its file names are relative to `root`.

    It reads no label and no validation photograph.
    """
    output = proposals_file(work, data, kind)
    if output.exists():
        return
    if kind == "random":
        make_proposals(root, work, data, "search")
        content = moved(load_coco(proposals_file(work, data, "search")))
    else:
        content = merged([(f, load_coco(_searched(root, work, f))) for f in folders_of(data)])
    write_json_atomic(content, output)


def folders_of(data: DataSet) -> tuple[str, ...]:
    """Folders of the photographs that pre-training sees."""
    return (data.train_images, *data.unlabelled)


def _searched(root: Path, work: Path, folder: str) -> Path:
    output = work / "proposals" / f"{folder.replace('/', '_')}.json"
    if not output.exists():
        command = ["-m", "data.proposals", "--images", str(root / folder), "--output", str(output)]
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
