"""Boxes for your own images in one command: selective search, filter, NMS, COCO JSON.

    python -m data.proposals --images DIR --output FILE.json [--filter ratio3size0008]
        [--annotations FILE.json] [--recall ANNOTATIONS.json] [--workers N]

Every proposal becomes an annotation of the one category ``object`` with a score that falls with
its rank; box-domain pre-training reads the file in place of labels. The result does not depend on
the number of processes.

Letters: `P` proposals, `M` ground-truth boxes.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from data.box_filter import parse_filter
from data.coco import load_coco, write_json_atomic
from data.errors import DataError
from data.images import check_images, list_images, read_image
from data.propose import ProposalSettings, propose
from data.recall import measure_recall


def propose_files(
    directory: Path, files: Sequence[str], settings: ProposalSettings, workers: int
) -> Iterator[tuple[tuple[int, int], np.ndarray]]:
    """Yield ((height, width), boxes (P, 4)) for each file, in order, computed by ``workers``.

    Raises:
        DataError: an image can't be read.
    """
    task = partial(_propose_file, directory, settings)
    if workers <= 1:
        yield from map(task, files)
        return
    # Forking a process that has already run torch threads can hang: fork a fresh one, or none.
    method = "spawn"
    if "forkserver" in multiprocessing.get_all_start_methods():
        method = "forkserver"
        multiprocessing.set_forkserver_preload(["data.proposals"])  # one import of torch for all
    context = multiprocessing.get_context(method)
    with context.Pool(min(workers, len(files)), torch.set_num_threads, (1,)) as pool:
        yield from pool.imap(task, files)


def _propose_file(
    directory: Path, settings: ProposalSettings, file: str
) -> tuple[tuple[int, int], np.ndarray]:
    pixels = np.array(read_image(directory / file))
    boxes = propose([torch.from_numpy(pixels).permute(2, 0, 1)], settings)[0]
    return pixels.shape[:2], boxes.numpy()


def to_coco(images: list[dict[str, Any]], boxes: Sequence[np.ndarray]) -> dict[str, Any]:
    """COCO dict of ranked boxes, (P, 4) xyxy for each entry of ``images``."""
    annotations = []
    for image, ranked in zip(images, boxes, strict=True):
        for rank, (x1, y1, x2, y2) in enumerate(ranked.astype(float).round(2).tolist()):
            w, h = round(x2 - x1, 2), round(y2 - y1, 2)
            annotation = {
                "id": len(annotations) + 1,
                "image_id": image["id"],
                "category_id": 1,
                "bbox": [x1, y1, w, h],
                "area": round(w * h, 2),
                "iscrowd": 0,
                "score": round(1 - rank / len(ranked), 6),
            }
            annotations.append(annotation)
    categories = [{"id": 1, "name": "object"}]
    return {"images": images, "annotations": annotations, "categories": categories}


def _list_entries(directory: Path, annotations: str | None) -> list[dict[str, Any]]:
    """COCO image entries to work on; those made here still lack width and height."""
    if annotations is not None:
        entries = load_coco(annotations)["images"]
    else:
        files = list_images(directory)
        entries = [{"id": i, "file_name": file} for i, file in enumerate(files, start=1)]
    check_images(directory, [entry["file_name"] for entry in entries])
    return entries


def _run(
    directory: Path, entries: list[dict[str, Any]], settings: ProposalSettings, workers: int
) -> tuple[list[dict[str, Any]], list[np.ndarray]]:
    """Completed image entries and the boxes of each."""
    files = [entry["file_name"] for entry in entries]
    images, boxes = [], []
    with tqdm(total=len(files), unit="image", desc="proposals") as progress:
        results = propose_files(directory, files, settings, workers)
        for entry, ((height, width), ranked) in zip(entries, results, strict=True):
            listed = (entry.get("width", width), entry.get("height", height))
            if listed != (width, height):
                raise DataError(
                    f"{directory / entry['file_name']}: image has {width} x {height} pixels but "
                    f"is listed as {listed[0]} x {listed[1]}; correct the annotations"
                )
            images.append({**entry, "width": width, "height": height})
            boxes.append(ranked)
            progress.update()
    return images, boxes


def _objects_by_file(path: str) -> dict[str, Tensor]:
    """Ground-truth boxes (M, 4) xyxy of each image of a COCO JSON, crowds left out."""
    content = load_coco(path)
    boxes: dict[int, list[list[float]]] = {image["id"]: [] for image in content["images"]}
    for annotation in content["annotations"]:
        if not annotation.get("iscrowd", 0):
            x, y, w, h = annotation["bbox"]
            boxes[annotation["image_id"]].append([x, y, x + w, y + h])
    names = {image["id"]: image["file_name"] for image in content["images"]}
    return {names[i]: torch.tensor(b).reshape(-1, 4).float() for i, b in boxes.items()}


def _print_recall(
    truth: dict[str, Tensor], images: list[dict[str, Any]], boxes: list[np.ndarray], path: str
) -> None:
    both = [i for i, image in enumerate(images) if image["file_name"] in truth]
    if not both:
        raise DataError(f"{path}: lists none of the images searched; give their annotations")
    report = measure_recall(
        [torch.from_numpy(boxes[i]) for i in both],
        [truth[images[i]["file_name"]] for i in both],
    )
    for prefix, name in (("", "objects"), ("large_", "objects larger than 32 x 32 px")):
        print(
            f"{report[prefix + 'objects']} {name}: "
            f"recall at IoU 0.5 {100 * report[prefix + 'recall']:.1f} %, "
            f"mean best IoU {report[prefix + 'mean_best_iou']:.3f}"
        )
    print(f"{report['boxes_per_image']:.1f} boxes per image, {len(both)} images")


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m data.proposals",
        description="Propose object boxes for images without labels and write them as COCO JSON.",
    )
    add = parser.add_argument
    add("--images", required=True, metavar="DIR", help="folder of the images")
    add("--output", required=True, metavar="FILE", help="COCO JSON to write")
    add("--annotations", metavar="FILE", help="COCO JSON whose images (and ids) are used")
    add("--filter", default="ratio3size0008", help="ratio<R>size<AABB> or none (%(default)s)")
    add("--min-side", type=float, default=32.0, metavar="PX",
        help="shortest side the filter lets pass, in an image of longer side 640 (%(default)s)")
    add("--nms", type=float, default=0.5, metavar="IOU", help="1 turns it off (%(default)s)")
    add("--max-boxes", type=int, metavar="N", help="keep the N best of each image")
    add("--search-side", type=int, default=640, metavar="PX",
        help="shrink larger images to this longer side for the search (%(default)s)")
    add("--recall", metavar="FILE", help="COCO JSON with objects; print how many are covered")
    add("--workers", type=int, default=os.cpu_count(), metavar="N", help="processes (all cores)")
    return parser.parse_args(arguments)


def _read_settings(options: argparse.Namespace) -> ProposalSettings:
    lowest = {"min_side": 0, "nms": 0, "max_boxes": 1, "search_side": 1, "workers": 1}
    for name, least in lowest.items():
        value = getattr(options, name)
        if value is not None and not least <= value < math.inf:
            option = "--" + name.replace("_", "-")
            raise ValueError(f"{option} {value} is too small or no number; use at least {least}")
    box_filter = parse_filter(options.filter, options.min_side)
    return ProposalSettings(box_filter, options.nms, options.max_boxes, options.search_side)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, 1 for bad data, 2 for a bad option."""
    options = parse_arguments(arguments)
    try:
        settings = _read_settings(options)
        truth = _objects_by_file(options.recall) if options.recall else None
        entries = _list_entries(Path(options.images), options.annotations)
        images, boxes = _run(Path(options.images), entries, settings, options.workers)
        write_json_atomic(to_coco(images, boxes), options.output)
        if truth is not None:
            _print_recall(truth, images, boxes, options.recall)
    except (DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
