"""Convert Pascal VOC annotations (XML) to one COCO JSON, joining several years.

    python -m data.voc --voc VOCdevkit/VOC2007 --voc VOCdevkit/VOC2012 --split trainval \
        --output VOCdevkit/voc0712_trainval.json

VOC counts pixels from 1 and includes the last one; COCO counts from 0 and gives width and height.
VOC's evaluation neither rewards nor punishes finding a `difficult` object. COCO's way to say this
is `iscrowd` 1, the default here: training skips the box, evaluation ignores it (and, because
crowds are matched by the part of the detection they cover, any number of detections inside it).
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data.errors import DataError
from data.json_files import write_json_atomic

CLASSES = (  # category id = position + 1
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
)  # fmt: skip
DIFFICULT = ("crowd", "keep", "drop")


def convert(
    roots: Sequence[str | Path],
    split: str,
    images_root: str | Path | None = None,
    difficult: str = "crowd",
) -> dict[str, list[dict[str, Any]]]:
    """Read one split of one or more VOC folders.

    Args:
        roots: folders such as `VOCdevkit/VOC2007` that hold `Annotations`, `ImageSets/Main`
            and `JPEGImages`.
        split: name of the list in `ImageSets/Main` without `.txt`.
        images_root: folder that `file_name` is relative to; default: the folder above the roots,
            which gives names like `VOC2007/JPEGImages/000001.jpg`.
        difficult: `crowd` marks difficult objects with `iscrowd` 1, `keep` writes them like
            any other, `drop` leaves them out. The field `difficult` (0 or 1) is always written.

    Returns:
        COCO dict. Images are in the order of the roots and of their lists, with ids from 1.

    Raises:
        DataError: a list or an XML is missing or malformed, or names an unknown class.
        ValueError: `difficult` is none of the three, or `images_root` does not hold a root.
    """
    if difficult not in DIFFICULT:
        raise ValueError(f"difficult is {difficult!r}; give one of {', '.join(DIFFICULT)}")
    folders = [Path(os.path.abspath(root)) for root in roots]
    if len(set(folders)) < len(folders):
        raise ValueError("a VOC folder is given twice; give each --voc once")
    base = Path(os.path.commonpath([folder.parent for folder in folders]))
    base = base if images_root is None else Path(os.path.abspath(images_root))
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for folder in folders:
        if not folder.is_relative_to(base):
            raise ValueError(f"{folder}: is outside the images root {base}; give a folder above")
        for name, width, height, objects in _read_folder(folder, split):
            file = (folder / "JPEGImages" / f"{name}.jpg").relative_to(base).as_posix()
            image = {"id": len(images) + 1, "file_name": file, "height": height, "width": width}
            images.append(image)
            for entry in objects:
                if entry["difficult"] and difficult == "drop":
                    continue
                crowd = int(entry["difficult"] and difficult == "crowd")
                ids = {"id": len(annotations) + 1, "image_id": image["id"]}
                annotations.append(ids | entry | {"iscrowd": crowd})
    categories = [{"id": i, "name": name} for i, name in enumerate(CLASSES, start=1)]
    return {"images": images, "annotations": annotations, "categories": categories}


def _read_folder(folder: Path, split: str) -> list[tuple[str, int, int, list[dict[str, Any]]]]:
    """Name, width, height and objects of every image of the split."""
    names = _read_split(folder, split)
    with tqdm(names, desc=f"{folder.name} {split}", unit="image") as progress:
        return [(n, *_read_xml(folder / "Annotations" / f"{n}.xml")) for n in progress]


def _read_split(folder: Path, split: str) -> list[str]:
    path = folder / "ImageSets" / "Main" / f"{split}.txt"
    try:
        lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError):
        raise DataError(
            f"{path}: cannot read this list of images; give an existing --split and, as --voc, "
            "the folder that holds ImageSets and Annotations"
        ) from None
    if not any(lines):
        raise DataError(f"{path}: lists no image; download the image lists again")
    if any(len(line) > 1 for line in lines):  # such as "000005 -1" in aeroplane_train.txt
        raise DataError(f"{path}: is a list for one class; give --split train, val or trainval")
    return [line[0] for line in lines if line]


def _read_xml(path: Path) -> tuple[int, int, list[dict[str, Any]]]:
    """Width, height and objects (COCO fields without the ids) of one image."""
    try:
        root = ElementTree.parse(path).getroot()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; restore it or unlist the image") from None
    except (ElementTree.ParseError, OSError) as error:
        raise DataError(f"{path}: not readable as XML ({error}); download it again") from None
    width, height = (int(_number(path, root, f"size/{key}")) for key in ("width", "height"))
    if width < 1 or height < 1:
        raise DataError(f"{path}: states an image of {width} x {height} pixels; correct the size")
    return width, height, [_read_object(path, e, width, height) for e in root.findall("object")]


def _read_object(
    path: Path, element: ElementTree.Element, width: int, height: int
) -> dict[str, Any]:
    name = (element.findtext("name") or "").strip()
    if name not in CLASSES:
        raise DataError(f"{path}: unknown class {name!r}; only the 20 classes of VOC are converted")
    corners = ("bndbox/xmin", "bndbox/ymin", "bndbox/xmax", "bndbox/ymax")
    xmin, ymin, xmax, ymax = (_number(path, element, corner) for corner in corners)
    x, y = max(xmin - 1, 0), max(ymin - 1, 0)  # from here on 0-based, inside the image
    w, h = min(xmax, width) - x, min(ymax, height) - y
    if w <= 0 or h <= 0:
        raise DataError(
            f"{path}: the box {xmin:g} {ymin:g} {xmax:g} {ymax:g} of a {name} is empty or outside "
            f"the image of {width} x {height} pixels; correct it"
        )
    return {
        "category_id": CLASSES.index(name) + 1,
        "bbox": [x, y, w, h],
        "area": w * h,
        "difficult": int((element.findtext("difficult") or "0").strip() == "1"),
    }


def _number(path: Path, element: ElementTree.Element, tag: str) -> float:
    """The finite number in a tag; VOC 2012 has a few with decimals."""
    text = element.findtext(tag)
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f"{path}: {tag} is {text!r}, not a number; correct it")
    return value


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="Convert Pascal VOC annotations to COCO JSON.")
    parser.add_argument(
        "--voc", action="append", required=True, help="such as VOCdevkit/VOC2007; may be repeated"
    )
    parser.add_argument("--split", required=True, help="train, val, trainval or test")
    parser.add_argument("--output", required=True, help="COCO JSON to write")
    parser.add_argument("--images-root", help="folder that file names start from (above --voc)")
    parser.add_argument(
        "--difficult",
        choices=DIFFICULT,
        default="crowd",
        help="what to do with difficult objects; crowd: they are ignored (crowd)",
    )
    options = parser.parse_args(arguments)
    try:
        coco = convert(options.voc, options.split, options.images_root, options.difficult)
        write_json_atomic(coco, options.output)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    counts = f"{len(coco['images'])} images, {len(coco['annotations'])} boxes"
    crowds = sum(annotation["iscrowd"] for annotation in coco["annotations"])
    print(f"{options.output}: {counts}, {crowds} of them difficult and ignored")
    return 0


if __name__ == "__main__":
    sys.exit(main())
