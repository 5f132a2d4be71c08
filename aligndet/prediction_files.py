"""What `aligndet.predict` reads and writes: images with their ids, and COCO JSON."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from aligndet.evaluate import coco_results
from aligndet.mask_results import mask_area
from data.coco import Categories
from data.coco_json import load_coco
from data.drawing import check_apart
from data.errors import DataError
from data.file_names import locate_files
from data.images import AS_STORED, ImageReading, read_listed
from data.walk import list_images

RESULTS = "detections.json"  # in the output folder


@dataclass(frozen=True)
class Inputs:
    """The images to predict."""

    root: Path
    entries: list[dict[str, Any]]  # COCO's: `id`, `file_name` relative to root, maybe more
    categories: Categories  # those of the detector, maybe with the ids of a file
    source: str | Path | None  # the COCO JSON that lists them, if there is one
    reading: ImageReading  # how their files are read

    def read(self, entry: Mapping[str, Any]) -> Image.Image:
        """The image of an entry.

        Raises:
            DataError: it is missing or unreadable, or has another size than the entry says.
        """
        path = self.root / entry["file_name"]
        size = entry.get("width"), entry.get("height")
        return read_listed(path, size, self.source, self.reading)


def list_inputs(
    images: Path,
    annotations: str | Path | None,
    categories: Categories,
    reading: ImageReading = AS_STORED,
    allow_outside: bool = False,
) -> Inputs:
    """List the images: one file, a folder, or those of a folder that a COCO JSON lists, which may
    lead out of the folder only if that is allowed.

    Raises:
        DataError: there is no image, or the JSON is malformed or lacks classes of the detector.
    """
    if annotations is None:
        single = images.is_file()
        root, names = (images.parent, [images.name]) if single else (images, list_images(images))
        entries = [{"id": i, "file_name": name} for i, name in enumerate(names, start=1)]
        return Inputs(root, entries, categories, None, reading)
    if not images.is_dir():
        raise DataError(
            f"{images}: no such directory; with --annotations, give --images the folder that "
            "holds the images it lists"
        )
    content = load_coco(annotations)
    if not content["images"]:
        raise DataError(f"{annotations}: lists no image; give a file that lists some")
    known = in_ids_of(annotations, content["categories"], categories)
    names = [entry["file_name"] for entry in content["images"]]
    files = locate_files(images, names, annotations, True, allow_outside)
    entries = [{**e, "file_name": f} for e, f in zip(content["images"], files, strict=True)]
    return Inputs(images, entries, known, annotations, reading)


def in_ids_of(
    source: str | Path, entries: Sequence[Mapping[str, Any]], categories: Categories
) -> Categories:
    """The detector's classes with the ids that a file gives to their names, if it lists any.

    Raises:
        DataError: the file lacks a class, or has two of its name.
    """
    theirs = [(entry["id"], str(entry["name"])) for entry in entries]
    if not theirs or set(zip(categories.ids, categories.names, strict=True)) <= set(theirs):
        return categories
    ids = []
    for name in categories.names:
        same = [number for number, other in theirs if other == name]
        if len(same) != 1:
            times = "twice" if same else "not"
            raise DataError(
                f"{source}: the detector's class {name!r} is {times} among its categories; give "
                "the file of the data that the detector was trained for"
            )
        ids += same
    return Categories(tuple(ids), categories.names)


def check_output(images: Path, inputs: Inputs, output: Path, pictures: Sequence[Path]) -> None:
    """Find out before the work whether outputs would be taken for inputs or overwrite one.

    Links are followed.

    Raises:
        DataError: they would, or the output is not a folder.
    """
    if output.exists() and not output.is_dir():
        raise DataError(f"{output}: is a file; give --output a folder")
    if images.is_dir():
        check_apart(images, pictures)
    results = output / RESULTS
    if results.is_dir() or any(results in picture.parents for picture in pictures):
        raise DataError(
            f"{results}: is to be a file, but is the name of a folder; rename the folder of images "
            "that is called so, or choose another --output"
        )
    files = [inputs.root / entry["file_name"] for entry in inputs.entries]
    if inputs.source is not None:
        files.append(Path(inputs.source))
    # A file that would be overwritten is there already.
    there = {p.resolve(): p for p in [*pictures, results] if os.path.lexists(p)}
    for file in files if there else []:
        if file.resolve() in there:
            raise DataError(
                f"{there[file.resolve()]}: would overwrite {file}, which is read; choose another "
                "--output"
            )


@dataclass
class Content:
    """The JSON to write: COCO's `images`, `annotations` with `score`, `categories`."""

    categories: Categories
    images: list[dict[str, Any]] = field(default_factory=list)
    annotations: list[dict[str, Any]] = field(default_factory=list)

    def add(self, entry: Mapping[str, Any], image: Image.Image, found: dict[str, Tensor]) -> None:
        """Add an image with its detections: boxes (D, 4) xyxy in its pixels, scores, labels, and
        maybe masks."""
        self.images.append({**entry, "width": image.width, "height": image.height})
        size = (image.height, image.width)
        results = coco_results(
            [found], [entry["id"]], torch.tensor([size]), [size], self.categories
        )
        for number, result in enumerate(results, start=len(self.annotations) + 1):
            area = result["bbox"][2] * result["bbox"][3]
            if "segmentation" in result:
                area = mask_area(result["segmentation"])
            self.annotations.append({**result, "id": number, "area": area, "iscrowd": 0})

    def as_dict(self) -> dict[str, Any]:
        """The whole content."""
        pairs = zip(self.categories.ids, self.categories.names, strict=True)
        return {
            "images": self.images,
            "annotations": self.annotations,
            "categories": [{"id": number, "name": name} for number, name in pairs],
        }
