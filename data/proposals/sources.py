"""Which images get proposals, and from where: the search, labels or a detector's results.

Given boxes are made class-agnostic, clipped to their image and ranked; those without area are left
out.

Legend: P proposals, M ground-truth boxes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from data.coco import fill_sizes
from data.coco_ids import ListedIds, canonical_id
from data.coco_json import clean_coco, load_coco, read_image_list
from data.coco_values import LIMIT
from data.errors import DataError
from data.file_names import locate_files
from data.images import AS_STORED, ImageReading
from data.json_files import read_json
from data.masks import encode
from data.proposals.workers import Job
from data.walk import walk_images

# Of a box, in pixels. The output has two decimals, and training refuses a box without area.
LEAST_SIDE = 0.02


@dataclass(frozen=True)
class Work:
    """The images of a run."""

    entries: list[dict[str, Any]]  # COCO's 'images'; those of a folder lack width and height
    jobs: list[Job]  # one per entry
    left_out: str | None = None  # a sentence about files or given boxes that are not used


def list_work(
    images: Path,
    annotations: str | None,
    source: str,
    reading: ImageReading = AS_STORED,
    allow_outside: bool = False,
    with_masks: bool = False,
) -> Work:
    """List the images and jobs for the options of the command.

    Args:
        images: folder of the images.
        annotations: COCO JSON whose images are used; it needs labels only as the source `gt`. None
            takes every image of the folder and allows no source but `search`.
        source: `search`, `gt` (the boxes of `annotations`, in their order) or the path of
            a detector's results (best score first).
        reading: how the images are read.
        allow_outside: whether a `file_name` may lead out of the folder of the images.
        with_masks: given boxes keep their masks.

    Raises:
        DataError: a file or the folder is missing or malformed, an image is listed twice, or the
            results are for other images; with masks also if a mask is malformed.
    """
    if not images.is_dir():
        raise DataError(f"{images}: no such directory; give the folder that holds the images")
    if annotations is None:
        found = walk_images(images)
        entries = [{"id": i, "file_name": file} for i, file in enumerate(found.files, start=1)]
        return Work(entries, [Job(file) for file in found.files], found.sentence())
    labelled = source == "gt"
    content = load_coco(annotations) if labelled else {"images": read_image_list(annotations)}
    entries = _located(images, content["images"], annotations, allow_outside)
    _check_unique(annotations, entries)
    if source == "search":
        return Work(entries, [_job(entry) for entry in entries])
    if labelled:
        given, total = _labels(content)
    else:
        given, total = _results(source, images, entries, annotations, allow_outside)
    sizes = np.array([(e["height"] or 0, e["width"] or 0) for e in entries]).reshape(-1, 2)
    sizes, _ = fill_sizes(images, [e["file_name"] for e in entries], sizes, reading)
    for entry, (height, width) in zip(entries, sizes.tolist(), strict=True):
        entry.update(height=height, width=width)
    jobs = [_job_of_given(entry, given[entry["id"]], source, with_masks) for entry in entries]
    lost = total - sum(len(job.boxes) for job in jobs)
    if labelled and 0 < lost == total:
        raise DataError(
            f"{annotations}: none of its {total:,} boxes can be used (crowds, boxes without area "
            "in their image); set 'iscrowd' to 0 if they are ordinary boxes"
        )
    sentence = (
        f"--source {source}: {lost:,} of {total:,} boxes are left out (crowds, boxes without area "
        "in their image or for other images)"
    )
    sentences = [sentence] if lost else []
    if with_masks:
        sentences += _without_masks(source, jobs)
    return Work(entries, jobs, "\n".join(sentences) or None)


def objects_by_file(path: str, images: Path, allow_outside: bool = False) -> dict[str, Tensor]:
    """Ground-truth boxes (M, 4) float32 xyxy of each image of a COCO JSON, clipped to the image if
    its size is stated, without crowds and boxes that have no area there; the files are relative to
    the folder `images`, as far as they are there.

    Raises:
        DataError: see `load_coco` and `locate_files`.
    """
    content = load_coco(path)
    _located(images, content["images"], path, allow_outside)
    labels, _ = _labels(content)
    objects: dict[str, Tensor] = {}
    for image in content["images"]:
        corners, _ = _clip(labels[image["id"]], image)
        others = objects.get(image["file_name"], torch.zeros(0, 4))  # if the file is listed twice
        objects[image["file_name"]] = torch.cat([others, torch.from_numpy(corners)])
    return objects


class ObjectMasks(NamedTuple):
    """The masks of an image's objects."""

    masks: list[bytes]  # M masks as in `data.masks`
    size: tuple[int, int]  # (height, width) of the image


def object_masks_by_file(
    path: str, images: Path, allow_outside: bool = False
) -> dict[str, ObjectMasks]:
    """Ground-truth masks of each image of a COCO JSON whose size it states; files as above.

    Raises:
        DataError: see `objects_by_file`; also if a mask is malformed.
    """
    content = load_coco(path)
    _located(images, content["images"], path, allow_outside)
    labels, _ = _labels(content)
    found: dict[str, ObjectMasks] = {}
    for image in content["images"]:
        if image["height"] is not None:
            size = (image["height"], image["width"])
            own = labels[image["id"]]
            masks = [_mask(own[row], size, path) for row in _clip(own, image)[1]]
            before = found[image["file_name"]].masks if image["file_name"] in found else []
            found[image["file_name"]] = ObjectMasks(before + masks, size)
    return found


def _located(
    images: Path, entries: list[dict[str, Any]], path: str, allow_outside: bool
) -> list[dict[str, Any]]:
    """The entries, each with the name of its file; a missing one is named when it is read."""
    names = [entry["file_name"] for entry in entries]
    files = locate_files(images, names, path, missing_ok=True, allow_outside=allow_outside)
    for entry, file in zip(entries, files, strict=True):
        entry["file_name"] = file
    return entries


def _job(entry: dict[str, Any]) -> Job:
    size = None if entry["width"] is None else (entry["height"], entry["width"])
    return Job(entry["file_name"], size)


def _job_of_given(
    entry: dict[str, Any], given: Sequence[dict[str, Any]], source: str, with_masks: bool
) -> Job:
    """The job of an image with boxes.

    Raises:
        DataError: a mask is malformed.
    """
    size = (entry["height"], entry["width"])
    boxes, rows = _clip(given, entry)
    masks = None
    if with_masks:
        masks = [_mask(given[row], size, f"--source {source}") for row in rows]
    return Job(entry["file_name"], size, boxes, masks)


def _mask(label: dict[str, Any], size: tuple[int, int], where: str) -> bytes:
    try:
        return encode(label.get("segmentation"), *size)
    except ValueError as error:
        raise DataError(
            f"{where}: the box {label['bbox']} of image {label['image_id']}: its "
            f"segmentation {error}; correct it, or leave --masks out"
        ) from None


def _without_masks(source: str, jobs: Sequence[Job]) -> list[str]:
    """A sentence about boxes without masks, if there are any."""
    masks = [mask for job in jobs for mask in job.masks]
    lacking = sum(not mask for mask in masks)
    if not lacking:
        return []
    return [
        f"--source {source}: {lacking:,} of {len(masks):,} boxes have no 'segmentation' and get no "
        "mask"
    ]


def _check_unique(path: str, entries: list[dict[str, Any]]) -> None:
    if not entries:
        raise DataError(f"{path}: lists no image; give a file that lists some")
    seen: set[str] = set()
    for entry in entries:
        if entry["file_name"] in seen:
            raise DataError(
                f"{path}: lists the image {entry['file_name']!r} twice; remove one of the entries"
            )
        seen.add(entry["file_name"])


def _labels(content: dict[str, Any]) -> tuple[dict[Any, list[dict[str, Any]]], int]:
    """Annotations by image id, crowds left out, and how many there were, crowds included."""
    labels: dict[Any, list[dict[str, Any]]] = {image["id"]: [] for image in content["images"]}
    for annotation in content["annotations"]:
        if not annotation["iscrowd"]:
            labels[annotation["image_id"]].append(annotation)
    return labels, len(content["annotations"])


def _results(
    path: str,
    images: Path,
    entries: list[dict[str, Any]],
    annotations: str,
    allow_outside: bool,
) -> tuple[dict[Any, list[dict[str, Any]]], int]:
    """Results by image id of `entries`, best score first, and how many there were in all."""
    results, known_as = _read_results(path, images, allow_outside)
    ids = {image["id"]: image["id"] for image in entries}
    if known_as is not None:  # the file lists images itself: its ids are not those of `annotations`
        by_name = {image["file_name"]: image["id"] for image in entries}
        ids = {other: by_name[name] for other, name in known_as.items() if name in by_name}
    listed = ListedIds(ids)
    scored: dict[Any, list[dict[str, Any]]] = {i["id"]: [] for i in entries}
    for number, entry in enumerate(results, start=1):
        problem = _entry_problem(entry)
        if problem:
            raise DataError(
                f"{path}: entry {number} of the results {problem} ({json.dumps(entry)[:80]}); "
                "correct it or remove it"
            )
        image_id = listed.find(entry["image_id"])
        if image_id is not None:
            scored[ids[image_id]].append(entry)
    if results and not any(scored.values()):
        raise DataError(
            f"{path}: has boxes for none of the images in {annotations}; give the annotations of "
            "the images that the detector saw"
        )
    best_first = {
        image: sorted(rows, key=lambda row: -row["score"]) for image, rows in scored.items()
    }
    return best_first, len(results)


def _read_results(
    path: str, images: Path, allow_outside: bool
) -> tuple[list[Any], dict[Any, str] | None]:
    """Entries of a results file, and the file name of each image id if it lists images."""
    if not Path(path).exists():
        raise DataError(
            f"--source {path}: no such file; use search, gt or the path of a detector's results"
        )
    content = read_json(path)
    if isinstance(content, list):
        return content, None
    entries = content.get("annotations") if isinstance(content, dict) else None
    # Entries are checked like those of a plain list, the images as everywhere else.
    clean_coco(path, {**content, "annotations": []} if isinstance(entries, list) else content)
    listed = _located(images, content["images"], path, allow_outside)
    return entries, {image["id"]: image["file_name"] for image in listed}


def _entry_problem(entry: Any) -> str | None:
    """What is wrong with an entry of COCO results, or None."""
    if not isinstance(entry, dict):
        return "is not an object"
    for field in ("image_id", "bbox", "score"):
        if field not in entry:
            return f"has no '{field}'"
    if canonical_id(entry["image_id"]) is None:
        return "has an image_id that is not an integer or text"
    bbox = entry["bbox"]
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(_is_number(v, LIMIT) for v in bbox):
        return "has a bbox that is not four finite numbers [x, y, width, height]"
    if not _is_number(entry["score"]):
        return "has a score that is not a finite number"
    return None


def _is_number(value: Any, limit: float = 1e30) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return abs(value) <= limit  # also refuses NaN, and integers that do not fit into a float


def _clip(labels: Sequence[dict[str, Any]], entry: dict[str, Any]) -> tuple[np.ndarray, list[int]]:
    """(P, 4) float32 xyxy inside the image, as far as its size is known, order kept, without boxes
    that have no area there; and which boxes these are."""
    boxes = np.array([label["bbox"] for label in labels], dtype=np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    limits = [entry["width"] or LIMIT, entry["height"] or LIMIT] * 2
    boxes = boxes.clip(0, limits).round(2)
    sides = (boxes[:, 2:] - boxes[:, :2]).round(2)
    rows = np.flatnonzero((sides >= LEAST_SIDE).all(axis=1))
    return boxes[rows].astype(np.float32), rows.tolist()
