"""A small COCO JSON, and the same as different tools write it."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

Content = dict[str, Any]

PLAIN: Content = {
    "images": [
        {"id": 1, "file_name": "sub/a.png", "width": 64, "height": 48},
        {"id": 2, "file_name": "b.png", "width": 40, "height": 50},
    ],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 7, "bbox": [1, 2, 20, 20], "area": 400.0},
        {"id": 2, "image_id": 2, "category_id": 3, "bbox": [5, 5, 34, 40], "area": 1360.0},
        {"id": 3, "image_id": 1, "category_id": 3, "bbox": [30.5, 5, 30, 20], "area": 600.0},
    ],
    "categories": [{"id": 7, "name": "dog"}, {"id": 3, "name": "car"}],
}


def plain() -> Content:
    """A copy of the plain file, with `iscrowd` 0 everywhere."""
    content = copy.deepcopy(PLAIN)
    for annotation in content["annotations"]:
        annotation["iscrowd"] = 0
    return content


def write(folder: Path, content: Content, encoding: str = "utf-8") -> tuple[Path, Path]:
    """Write the images of the plain file and a JSON; returns the paths of both."""
    for entry in PLAIN["images"]:
        path = folder / "images" / entry["file_name"]
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (entry["width"], entry["height"]), (9, 99, 199)).save(path)
    (folder / "a.json").write_text(json.dumps(content), encoding=encoding)
    return folder / "images", folder / "a.json"


def each(key: str, **values: Any) -> Callable[[Content], None]:
    """Set fields of every entry; a function gets the old value."""

    def change(content: Content) -> None:
        for entry in content[key]:
            for field, value in values.items():
                entry[field] = value(entry[field]) if callable(value) else value

    return change


def one(key: str, **values: Any) -> Callable[[Content], None]:
    """Set fields of the first entry."""
    return lambda content: content[key][0].update(values)


def without(key: str, field: str) -> Callable[[Content], None]:
    """Remove a field of every entry."""
    return lambda content: [entry.pop(field, None) for entry in content[key]]  # type: ignore


def image_ids(first: Any, second: Any) -> Callable[[Content], None]:
    """Give the two images other ids, in the annotations too."""

    def change(content: Content) -> None:
        ids = {1: first, 2: second}
        for entry in content["images"]:
            entry["id"] = ids[entry["id"]]
        for entry in content["annotations"]:
            entry["image_id"] = ids[entry["image_id"]]

    return change


def polygons(*coordinates: Any) -> Callable[[Content], None]:
    """Empty the first box and give it a segmentation."""
    return one("annotations", bbox=[], segmentation=list(coordinates))


def names(function: Callable[[str], str]) -> Callable[[Content], None]:
    """Change every file name."""
    return each("images", file_name=function)


ANNOTATIONS = "annotations"
AROUND_THE_FIRST = [1, 2, 21, 2, 11, 22]  # a triangle
# Changes after which the file means what it meant before.
SAME: dict[str, Callable[[Content], Any]] = {
    "plain": lambda content: None,
    "iscrowd null": each(ANNOTATIONS, iscrowd=None),
    "iscrowd empty text": each(ANNOTATIONS, iscrowd=""),
    "iscrowd text": each(ANNOTATIONS, iscrowd="0"),
    "iscrowd false": each(ANNOTATIONS, iscrowd=False),
    "iscrowd 'False'": each(ANNOTATIONS, iscrowd="False"),
    "iscrowd float": each(ANNOTATIONS, iscrowd=0.0),
    "iscrowd nan": each(ANNOTATIONS, iscrowd=float("nan")),
    "iscrowd missing": without(ANNOTATIONS, "iscrowd"),
    "ignore 0": each(ANNOTATIONS, ignore=0),
    "area null": one(ANNOTATIONS, area=None),
    "area missing": without(ANNOTATIONS, "area"),
    "area text": one(ANNOTATIONS, area="400"),
    "area no number": one(ANNOTATIONS, area="large"),
    "area empty": one(ANNOTATIONS, area=""),
    "area zero": each(ANNOTATIONS, area=0),
    "area negative": each(ANNOTATIONS, area=-1),
    "area nan": one(ANNOTATIONS, area=float("nan")),
    "area infinite": one(ANNOTATIONS, area=float("inf")),
    "area of 400 digits": one(ANNOTATIONS, area=10**400),
    "area a list": one(ANNOTATIONS, area=[400]),
    "no annotation ids": without(ANNOTATIONS, "id"),
    "annotation id null": one(ANNOTATIONS, id=None),
    "annotation ids repeated": each(ANNOTATIONS, id=5),
    "annotation ids text": each(ANNOTATIONS, id=str),
    "annotation id 0": one(ANNOTATIONS, id=0),
    "image ids text": image_ids("b", "a"),
    "image ids text and number": image_ids("x1", 2),
    "image ids huge": image_ids(10**24 + 1, 10**24 + 2),
    "image ids of 400 digits": image_ids(10**400, 10**400 + 1),
    "image ids beyond 64 bits and small": image_ids(2**63, 1),
    "image ids negative and 0": image_ids(-1, 0),
    "image ids float": image_ids(1.0, 2.0),
    "image ids near in float64": image_ids(2**53, 2**53 + 1),
    "image ids number and the same text": image_ids(1, "1"),
    "image_id text": each(ANNOTATIONS, image_id=str),
    "image_id text with zeros": each(ANNOTATIONS, image_id="{:012d}".format),
    "image_id number of text": each("images", id=str),
    "image_id float": each(ANNOTATIONS, image_id=float),
    "category ids text": lambda c: [
        each("categories", id=str)(c),
        each(ANNOTATIONS, category_id=str)(c),
    ],
    "category ids float": lambda c: [
        each("categories", id=float)(c),
        each(ANNOTATIONS, category_id=float)(c),
    ],
    "category_id text": each(ANNOTATIONS, category_id=str),
    "size float": each("images", width=float, height=float),
    "size text": each("images", width=str, height=str),
    "size null": each("images", width=None, height=None),
    "size missing": without("images", "width"),
    "size 0": one("images", height=0),
    "size negative": one("images", width=-64),
    "size 63.5": one("images", width=63.5),
    "size of 400 digits": one("images", width=10**400),
    "bbox text": each(ANNOTATIONS, bbox=lambda box: [str(value) for value in box]),
    "polygon": polygons(AROUND_THE_FIRST),
    "polygon in two parts": polygons([1, 2, 5, 2, 5, 9], [9, 9, 21, 22, 9, 22]),
    "polygon flat": polygons(*AROUND_THE_FIRST),
    "polygon of points": polygons([1, 2], [21, 2], [11, 22]),
    "polygon, bbox null": one(ANNOTATIONS, bbox=None, segmentation=[AROUND_THE_FIRST]),
    "polygon, bbox 0": one(ANNOTATIONS, bbox=[0, 0, 0, 0], segmentation=[AROUND_THE_FIRST]),
    "mask": each(ANNOTATIONS, segmentation={"size": [48, 64], "counts": "abc"}),
    "names with backslashes": names(lambda name: name.replace("/", "\\")),
    "names with ./": names(lambda name: f"./{name}"),
    "names in images/": names(lambda name: f"images/{name}"),
    "names in ../data/images/": names(lambda name: f"../data/images/{name}"),
    "names of Windows": names(lambda name: "C:\\Users\\Ann\\images\\" + name.replace("/", "\\")),
    "names of another machine": names(lambda name: f"/home/ann/images/{name}"),
    "names percent-encoded": names(lambda name: name.replace("/", "%2F").replace("a", "%61")),
    "names of the web": names(lambda name: f"https://host.org/d/images/{name}?width=64#top"),
    "names of a bucket": names(lambda name: f"s3://bucket/images/{name}"),
    "names of LVIS": lambda content: [
        entry.update(coco_url=f"http://host.org/train2017/{entry.pop('file_name')}")
        for entry in content["images"]
    ],
    "names in upper case": names(str.upper),
    "names of uploads": names(
        lambda name: "/data/upload/1/" + "/0f3a9c21-".join(("/" + name).rsplit("/", 1))
    ),
    "names of local files": names(lambda name: f"/data/local-files/?d=images/{name}"),
    "an image listed twice": lambda content: content["images"].append({**content["images"][0]}),
    "a class listed twice": lambda content: content["categories"].append(
        {**content["categories"][0], "supercategory": "animal"}
    ),
}
