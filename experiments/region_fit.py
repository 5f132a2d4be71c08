"""How well the regions that a mask head learns from fit the objects, by the labelled masks:

    python -m experiments.region_fit --proposals FILE.json --annotations FILE.json

The proposals are those of `data.proposals --masks`; both files name the same images, if need be by
the ends of their paths.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as coco_mask

from data.coco_json import load_coco
from data.masks import encode

ON_OBJECT = 0.5  # IoU of boxes from which a region is taken to be of an object
CLOSE = 0.75  # IoU of masks


class Fit(NamedTuple):
    """How regions fit objects, in percent; NaN where there is none to tell from."""

    regions: int
    on_object: float  # regions whose box overlaps that of an object by half or more
    close: float  # of these, those whose mask has an IoU of 0.75 or more with the object's
    mean_iou: float  # of the masks of these, times 100
    recall_by_box: float  # objects with a region that overlaps by half or more
    recall_by_mask: float


def region_fit(proposals: Mapping[str, Any], labels: Mapping[str, Any], count: int = 50) -> Fit:
    """Compare regions with labelled objects.

    Args:
        proposals: COCO JSON with `segmentation`, the best region of an image first.
        labels: COCO JSON with `segmentation`.
        count: regions of an image, at most.
    """
    regions = _by_file(proposals)
    boxes, masks, best_box, best_mask = [], [], [], []
    for name, objects in _by_file(labels).items():
        listed = next((of for file, of in regions.items() if _same(file, name)), None)
        if listed is None or not objects:  # an image that has not been searched
            continue
        found = listed[:count]
        if not found:
            best_box.append(np.zeros(len(objects)))
            best_mask.append(np.zeros(len(objects)))
            continue
        by_box, by_mask = (_overlaps(found, objects, key) for key in ("bbox", "mask"))  # (P, M)
        nearest = by_box.argmax(axis=1)[:, None]
        boxes.append(np.take_along_axis(by_box, nearest, 1)[:, 0])
        masks.append(np.take_along_axis(by_mask, nearest, 1)[:, 0])
        best_box.append(by_box.max(axis=0))
        best_mask.append(by_mask.max(axis=0))
    of_box, of_mask = np.concatenate(boxes), np.concatenate(masks)
    here = of_box >= ON_OBJECT
    return Fit(
        len(of_box),
        _percent(here),
        _percent(of_mask[here] >= CLOSE),
        _percent(of_mask[here]),
        *(_percent(np.concatenate(best) >= ON_OBJECT) for best in (best_box, best_mask)),
    )


def _by_file(content: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The objects with a mask of each image, by its file name; crowds are none."""
    images = {image["id"]: image for image in content["images"]}
    found: dict[str, list[dict[str, Any]]] = {image["file_name"]: [] for image in images.values()}
    for entry in content["annotations"]:
        image = images[entry["image_id"]]
        if entry.get("segmentation") and not entry.get("iscrowd"):
            size = image["height"], image["width"]
            mask = {"size": list(size), "counts": encode(entry["segmentation"], *size)}
            found[image["file_name"]].append({"bbox": entry["bbox"], "mask": mask})
    return found


def _same(file: str, name: str) -> bool:
    return file == name or file.endswith(f"/{name}")


def _overlaps(first: Sequence[Any], second: Sequence[Any], key: str) -> np.ndarray:
    others = [entry[key] for entry in second]
    return coco_mask.iou([entry[key] for entry in first], others, [False] * len(others))


def _percent(values: np.ndarray) -> float:
    return 100.0 * float(values.mean()) if values.size else float("nan")


def main() -> None:
    """Parse the command line and print the figures."""
    parser = argparse.ArgumentParser(description="How well the regions of a search fit objects.")
    parser.add_argument("--proposals", required=True, metavar="FILE")
    parser.add_argument("--annotations", required=True, metavar="FILE")
    parser.add_argument("--count", type=int, default=50, help="regions of an image (50)")
    args = parser.parse_args()
    fit = region_fit(load_coco(args.proposals), load_coco(args.annotations), args.count)
    for name, value in fit._asdict().items():
        shown = f"{value:.1f}" if isinstance(value, float) else value
        print(f"{name.replace('_', ' '):<15} {shown}")


if __name__ == "__main__":
    main()
