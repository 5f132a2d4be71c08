"""Pictures of a report: what is there, and what each run found, where they differ most."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torchvision.ops import box_convert, box_iou

from aligndet.image_inputs import as_image
from aligndet.visual import draw_boxes
from data.drawing import class_colour
from data.images import AS_STORED, ImageReading
from data.mask_drawing import draw_masks
from data.masks import encode

SHOWN = 0.3  # lowest score of a detection that is drawn and counted
OVERLAP = 0.5  # IoU from which a detection finds an object
SIDE = 320  # pixels of a picture's longer side
QUALITY = 80  # of its JPEG


@dataclass(frozen=True)
class Validation:
    """The labelled images that runs were evaluated on."""

    folder: Path
    reading: ImageReading  # how image files are read
    files: Mapping[int, str]  # by image id
    objects: Mapping[int, list[dict[str, Any]]]  # annotations by image id, crowds left out
    names: Mapping[int, str]  # of the categories, by id

    @classmethod
    def of(
        cls, content: Mapping[str, Any], images: str | Path, reading: ImageReading = AS_STORED
    ) -> Validation:
        """Those of a dict of `load_coco`, whose image files are in the folder `images`."""
        objects: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in content["images"]}
        for annotation in content["annotations"]:
            if not annotation.get("iscrowd"):
                objects[annotation["image_id"]].append(annotation)
        files = {image["id"]: image["file_name"] for image in content["images"]}
        names = {category["id"]: category["name"] for category in content["categories"]}
        return cls(Path(images), reading, files, objects, names)


def by_image(detections: Sequence[dict[str, Any]]) -> dict[int, list[dict[str, Any]]]:
    """The detections that are shown, by image id, the surest first."""
    found: dict[int, list[dict[str, Any]]] = {}
    for entry in sorted(detections, key=lambda entry: -entry["score"]):
        if entry["score"] >= SHOWN:
            found.setdefault(entry["image_id"], []).append(entry)
    return found


def f1(objects: Sequence[dict[str, Any]], found: Sequence[dict[str, Any]]) -> float:
    """How well an image is understood, 0 to 1: twice the objects found, by all objects and
    detections; 1 if there are neither. Each detection takes the object of its class that it
    overlaps most and that no surer one has taken."""
    if not objects and not found:
        return 1.0
    right, free = 0, list(range(len(objects)))
    overlaps = box_iou(corners(found), corners(objects)) if objects and found else None
    for number, entry in enumerate(found):
        alike = [i for i in free if objects[i]["category_id"] == entry["category_id"]]
        best = max(alike, key=lambda i: overlaps[number, i].item(), default=None)
        if best is not None and overlaps[number, best] >= OVERLAP:
            free.remove(best)
            right += 1
    return 2 * right / (len(objects) + len(found))


def most_telling(scores: Sequence[Mapping[int, float]], count: int) -> list[tuple[str, list[int]]]:
    """Which images to show: those that differ most between the first and the last run, either way,
    then the best and the worst of the last run. No image is shown twice.

    Args:
        scores: of each run, `f1` by image id.
        count: images of each kind, at most.
    """
    first, last = scores[0], scores[-1]
    kinds = []
    if len(scores) > 1:
        gain = {image: last[image] - first[image] for image in last}
        kinds.append(("where the last gains most", sorted(gain, key=lambda i: -gain[i])))
        lost = (image for image in gain if gain[image] < 0)
        kinds.append(("where it loses most", sorted(lost, key=gain.get)))
    kinds.append(("its best", sorted(last, key=lambda i: -last[i])))
    kinds.append(("its worst", sorted(last, key=last.get)))
    seen: set[int] = set()
    chosen = []
    for title, ordered in kinds:
        images = [image for image in ordered if image not in seen][:count]
        seen.update(images)
        if images:
            chosen.append((title, images))
    return chosen


def picture(
    data: Validation, image_id: int, entries: Sequence[dict[str, Any]], with_scores: bool
) -> str:
    """An image with boxes as a data URI; "" if its file is gone."""
    path = data.folder / data.files[image_id]
    if not path.is_file():
        return ""
    order = {category: label for label, category in enumerate(sorted(data.names))}
    labels = torch.tensor([order[entry["category_id"]] for entry in entries], dtype=torch.int64)
    image = with_masks(as_image(path, data.reading), entries, labels.tolist())
    image, scale = scaled(image)
    scores = torch.tensor([entry["score"] for entry in entries]) if with_scores else None
    names = [data.names[category] for category in sorted(data.names)]
    if len(names) == 1:
        names = None  # it says nothing, and hides small objects
    drawn = draw_boxes(image, corners(entries) * scale, labels, names, scores)
    return data_uri(drawn)


def scaled(image: Image.Image, side: int = SIDE) -> tuple[Image.Image, float]:
    """The image with a longer side of `side` pixels, and the factor: small ones are enlarged, so
    that captions are as easy to read on all."""
    scale = side / max(image.size)
    return image.resize([max(1, round(length * scale)) for length in image.size]), scale


def with_masks(
    image: Image.Image, entries: Sequence[dict[str, Any]], labels: Sequence[int]
) -> Image.Image:
    """The image with the masks of those COCO entries that have one."""
    width, height = image.size
    masks, colours = [], []
    for entry, label in zip(entries, labels, strict=True):
        if entry.get("segmentation"):
            counts = encode(entry["segmentation"], height, width)
            masks.append({"size": [height, width], "counts": counts})
            colours.append(class_colour(label))
    return draw_masks(image, masks, colours) if masks else image


def data_uri(image: Image.Image) -> str:
    """A JPEG that stands in the page itself."""
    file = io.BytesIO()
    image.convert("RGB").save(file, "JPEG", quality=QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def corners(entries: Sequence[dict[str, Any]]) -> torch.Tensor:
    """Boxes (M, 4) of COCO entries, xyxy."""
    boxes = torch.tensor([entry["bbox"] for entry in entries], dtype=torch.float32).reshape(-1, 4)
    return box_convert(boxes, "xywh", "xyxy")
