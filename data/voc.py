"""Convert Pascal VOC annotations (XML) to one COCO JSON, joining several years.

    python -m data.voc --voc VOCdevkit/VOC2007 --voc VOCdevkit/VOC2012 --split trainval \
        --output VOCdevkit/voc0712_trainval.json

VOC counts pixels from 1 and includes the last one; COCO counts from 0 and gives width and height.
Some tools write edges that count from 0 instead: if more corners of all files are at 0 than at 1,
they are taken for those.

VOC's evaluation neither rewards nor punishes finding a `difficult` object. COCO's way to say this
is `iscrowd` 1, the default here: training skips the box, evaluation ignores it (and, because
crowds are matched by the part of the detection they cover, any number of detections inside it).

For folders without lists of images, as labelling tools write them: `python -m data.convert`.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from data.convert_options import ReadOptions, add_options, read_classes
from data.json_files import write_json_atomic
from data.label_files import read_headers_of, split_order
from data.labelled_images import (
    Findings,
    Labelled,
    Split,
    choose_classes,
    labelled_splits,
    require_choice_of_difficult,
    summary,
    to_coco,
)
from data.plain_text import say, say_all
from data.voc_folder import VocFolder
from data.voc_xml import VocFile

CLASSES = (  # category id = position + 1
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
)  # fmt: skip


def convert(
    roots: Sequence[str | Path],
    split: str,
    images_root: str | Path | None = None,
    difficult: str = "crowd",
    classes: Sequence[str] | None = None,
    options: ReadOptions | None = None,
    findings: Findings | None = None,
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
        classes: names in the order of their ids. Default: VOC's 20 if all names in `Annotations`
            are among them, else these names, sorted.
        options: how to read; `split` and `images_root` in it are ignored.
        findings: gets what was left out, changed or guessed.

    Returns:
        COCO dict. Images are in the order of the roots and of their lists, with ids from 1.

    Raises:
        DataError: a list or an XML is missing or malformed, or no image is left.
        ValueError: `difficult` is none of the three, or `images_root` does not hold a root.
    """
    require_choice_of_difficult(difficult)
    folders = [Path(os.path.abspath(root)) for root in roots]
    if len(set(folders)) < len(folders):
        raise ValueError("a VOC folder is given twice; give each --voc once")
    base = Path(os.path.commonpath([folder.parent for folder in folders]))
    base = base if images_root is None else Path(os.path.abspath(images_root))
    options = replace(options or ReadOptions(), split=split, images_root=None)
    labelled = read_voc(folders, options, classes, with_lists=True)
    (part,) = labelled.splits
    content = to_coco(part, labelled.classes, base, difficult)
    if findings is not None:
        findings.update(part.findings)
        findings.remarks += labelled.remarks
    return content


def read_voc(
    roots: Sequence[Path],
    options: ReadOptions,
    classes: Sequence[str] | None = None,
    with_lists: bool | None = None,
) -> Labelled:
    """Read every XML of one or more folders, and pair it with its image.

    Args:
        roots: absolute paths. A folder with lists (`ImageSets`) is read by them. In any other,
            the XML files and the images may be anywhere; the names of subfolders, such as
            train and valid, tell the splits.
        options: what to read, and how.
        classes: names in the order of their ids; None: taken from the files.
        with_lists: whether the folders must have lists; None: found out.

    Raises:
        DataError: a list or an XML is missing or malformed, or no image is left.
    """
    folders = [VocFolder(root, options, with_lists) for root in roots]
    files = [file for folder in folders for file in folder.files.values() if file is not None]
    first_pixel, remark = _first_pixel(files, options.first_pixel)
    headers = read_headers_of(path for folder in folders for path in folder.images())
    by_name: dict[str, Split] = {}
    for folder in folders:
        for name in folder.splits:
            split = by_name.setdefault(name, Split(name, [], Findings(options.strict)))
            folder.add_to(split, headers, first_pixel)
    names = {entry.name for file in files for entry in file.objects if entry.name}
    usual = CLASSES if all(folder.has_lists for folder in folders) else ()
    chosen = choose_classes(names, classes, usual)
    splits = [by_name[name] for name in sorted(by_name, key=split_order)]
    splits, left_out = labelled_splits(splits, ", ".join(map(str, roots)))
    remarks = [remark, *left_out]
    if usual and classes is None and chosen != CLASSES:
        other = min(names - set(CLASSES))
        remarks.append(f"classes are those of the files, since {other!r} is none of VOC's 20")
    return Labelled(splits, chosen, remarks)


def _first_pixel(files: Iterable[VocFile], given: int | None) -> tuple[int, str]:
    """What the corners count from, and a sentence that says so."""
    if given is not None:
        return given, f"corners count from {given}, as --first-pixel says"
    starts = [v for f in files for o in f.objects if o.corners for v in o.corners[:2]]
    zeros, ones = sum(0 <= v < 1 for v in starts), sum(v == 1 for v in starts)
    evidence = f"{zeros:,} touch 0, {ones:,} touch 1"
    if zeros > ones:
        return 0, f"guessed: corners are edges that count from 0 ({evidence}; else --first-pixel 1)"
    return 1, f"guessed: corners are pixels that count from 1 ({evidence}; else --first-pixel 0)"


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="Convert Pascal VOC annotations to COCO JSON.")
    parser.add_argument(
        "--voc", action="append", required=True, help="such as VOCdevkit/VOC2007; may be repeated"
    )
    parser.add_argument("--split", required=True, help="train, val, trainval or test")
    parser.add_argument("--output", required=True, help="COCO JSON to write")
    parser.add_argument("--images-root", help="folder that file names start from (above --voc)")
    add_options(parser)
    options = parser.parse_args(arguments)
    try:
        findings = Findings(options.strict)
        coco = convert(
            options.voc,
            options.split,
            options.images_root,
            options.difficult,
            read_classes(options.classes),
            ReadOptions(
                keep_unlabelled=options.keep_unlabelled,
                strict=options.strict,
                first_pixel=options.first_pixel,
            ),
            findings,
        )
        write_json_atomic(coco, options.output)
    except (ValueError, OSError) as error:
        say(f"error: {error}", sys.stderr)
        return 1
    say(f"{options.output}: {summary(coco)}")
    say_all(f"  {line}" for line in findings.lines())
    return 0


if __name__ == "__main__":
    sys.exit(main())
