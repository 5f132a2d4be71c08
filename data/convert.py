"""Convert the labels of a labelling tool to COCO JSON.

    python -m data.convert photos --output photos/labels.json

The source is a folder of Pascal VOC XML files or of YOLO text files (or YOLO's `data.yaml`), with
the images in it or, with `--images-root`, elsewhere. A source with several splits gives a file for
each, `labels_train.json` and `labels_val.json` here, with the same categories. What is left out,
changed or guessed is printed.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from data.convert_options import ReadOptions, add_options, read_classes
from data.counting import count
from data.errors import DataError
from data.json_files import read_json, write_json_atomic
from data.label_files import name_key
from data.labelled_images import Findings, Labelled, Split, summary, to_coco
from data.plain_text import say, say_all
from data.voc import read_voc
from data.voc_lists import has_lists
from data.walk import files_below, readable_suffixes
from data.yolo import NO_LABELS, read_yolo
from data.yolo_sets import description_files

KINDS = ("voc", "yolo")
CLASSES_PRINTED = 30


def convert(
    source: str | Path,
    options: ReadOptions | None = None,
    classes: Sequence[str] | None = None,
    kind: str | None = None,
) -> Labelled:
    """Read a labelled folder of either kind.

    Args:
        source: folder, or YOLO's yaml.
        options: what to read, and how; the split `all` joins all splits.
        classes: names in the order of the category ids; None: as in the source.
        kind: `voc` or `yolo`; None: found out.

    Raises:
        DataError: the source is of no known kind, or cannot be read.
    """
    path = Path(os.path.abspath(source))
    options = options or ReadOptions()
    joined = options.split == "all"
    options = replace(options, split=None) if joined else options
    kind = kind or _recognise(path, options.images_root)
    if kind == "voc":
        labelled = read_voc(_voc_folders(path), options, classes)
    else:
        labelled = read_yolo(path, options, classes)
    if joined:
        labelled.splits = [_join(labelled.splits, options.strict)]
    if classes is None:
        labelled.remarks += _similar_names(labelled.classes)
    return labelled


def _recognise(source: Path, images_root: Path | None) -> str:
    """The kind of a source.

    Raises:
        DataError: there is no such source, it is of no known kind, or of both.
    """
    if source.suffix.lower() in (".yaml", ".yml", ".data") and source.is_file():
        return "yolo"
    if source.suffix.lower() == ".json" and source.is_file():
        raise DataError(_about_json(source))
    if not source.is_dir():
        raise DataError(f"{source}: no such folder; give the folder that holds the labels")
    files = files_below(source, {".xml", ".txt", ".json", *readable_suffixes()})
    xmls, texts, jsons = (
        [p for p in files if p.suffix.lower() == s] for s in (".xml", ".txt", ".json")
    )
    images = files if images_root is None else files_below(images_root, readable_suffixes())
    stems = {name_key(p.stem) for p in images if p.suffix.lower() in readable_suffixes()}
    texts = [p for p in texts if name_key(p.stem) in stems and p.name.lower() not in NO_LABELS]
    if xmls and texts:
        raise DataError(
            f"{source}: holds both XML files (such as {xmls[0]}) and YOLO's texts (such as "
            f"{texts[0]}); say which labels to take by --kind voc or --kind yolo"
        )
    if xmls:
        return "voc"
    if texts or description_files(source):
        return "yolo"
    if jsons:
        raise DataError(_about_json(jsons[0]))
    raise DataError(
        f"{source}: holds no labels that can be converted (XML of Pascal VOC, texts or a yaml of "
        "YOLO); give the folder that holds them"
    )


def _about_json(path: Path) -> str:
    content = read_json(path)
    if isinstance(content, dict) and "images" in content:
        return f"{path}: is COCO JSON already; use it as it is: data.train.annotations={path}"
    return (
        f"{path}: is JSON, but not COCO's; export the labels as COCO, as Pascal VOC or for YOLO "
        "from the tool that wrote it"
    )


def _voc_folders(source: Path) -> list[Path]:
    """The folders with lists in a VOCdevkit, else the source itself."""
    for candidates in ([source], source.glob("*"), source.glob("*/*")):
        folders = sorted(path for path in candidates if has_lists(path))
        if folders:
            return folders
    return [source]


def _join(splits: Sequence[Split], strict: bool) -> Split:
    result = Split("", [], Findings(strict))
    images = {image.path: image for split in splits for image in split.images}
    result.images = list(images.values())
    for split in splits:
        result.findings.update(split.findings)
    return result


def _similar_names(classes: Sequence[str]) -> list[str]:
    """Notes on classes whose names differ in capitals only."""
    folded: dict[str, list[str]] = {}
    for name in classes:
        folded.setdefault(name.casefold(), []).append(name)
    return [
        f"note: {' and '.join(names)} are different classes; --classes with one of them joins them"
        for names in folded.values()
        if len(names) > 1
    ]


def images_folder(source: str | Path, labelled: Labelled) -> Path:
    """The folder that file names start from: the source if it holds the images, else the one that
    all images share."""
    path = Path(os.path.abspath(source))
    folder = path if path.is_dir() else path.parent
    parents = {image.path.parent for split in labelled.splits for image in split.images}
    if all(parent.is_relative_to(folder) for parent in parents):
        return folder
    return Path(os.path.commonpath(parents))


def output_files(output: str | Path, names: Sequence[str]) -> list[Path]:
    """The file of each split: `output` for one, `output` with the names added for several; in
    `output` if that is a folder, or does not end in .json."""
    path = Path(output)
    if path.is_dir() or path.suffix.lower() != ".json":
        return [path / f"{name or 'labels'}.json" for name in names]
    if len(names) == 1:
        return [path]
    return [path.with_name(f"{path.stem}_{name}{path.suffix}") for name in names]


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="Convert Pascal VOC or YOLO labels to COCO JSON.")
    parser.add_argument("source", help="folder of the labels and images, or YOLO's data.yaml")
    parser.add_argument("--output", required=True, help="COCO JSON to write, or a folder for it")
    parser.add_argument("--split", help="the split to convert; all: join them (a file for each)")
    parser.add_argument("--kind", choices=KINDS, help="of the labels (found out)")
    parser.add_argument(
        "--images-root", help="folder of the images, from which file names start (the source)"
    )
    parser.add_argument(
        "--allow-outside",
        action="store_true",
        help="YOLO: let the yaml name files outside of its folder and of --images-root",
    )
    add_options(parser)
    args = parser.parse_args(arguments)
    try:
        root = Path(os.path.abspath(args.images_root)) if args.images_root else None
        options = ReadOptions(
            args.split,
            root,
            keep_unlabelled=args.keep_unlabelled,
            strict=args.strict,
            allow_outside=args.allow_outside,
            first_pixel=args.first_pixel,
        )
        labelled = convert(args.source, options, read_classes(args.classes), args.kind)
        base = root or images_folder(args.source, labelled)
        files = output_files(args.output, [split.name for split in labelled.splits])
        contents = [
            to_coco(split, labelled.classes, base, args.difficult) for split in labelled.splits
        ]
        for content, file in zip(contents, files, strict=True):
            write_json_atomic(content, file)
    except (ValueError, OSError) as error:
        say(f"error: {error}", sys.stderr)
        return 1
    say_all(_report(labelled, files, contents, base))
    return 0


def _report(
    labelled: Labelled, files: Sequence[Path], contents: Sequence[dict[str, Any]], base: Path
) -> list[str]:
    """What was found, left out, changed and guessed, and the config values to use."""
    lines = list(labelled.remarks)
    for split, file, content in zip(labelled.splits, files, contents, strict=True):
        lines.append(f"{file}: {summary(content)}")
        lines += [f"  {line}" for line in split.findings.lines()]
    boxes = Counter(
        entry["category_id"] for content in contents for entry in content["annotations"]
    )
    classes = [f"{name} {boxes[number]:,}" for number, name in enumerate(labelled.classes, start=1)]
    hidden = len(classes) - CLASSES_PRINTED
    more = f", and {hidden:,} more" if hidden > 0 else ""
    lines.append(f"{count(len(classes), 'class')}: {', '.join(classes[:CLASSES_PRINTED])}{more}")
    file_of = {split.name: file for split, file in zip(labelled.splits, files, strict=True)}
    train = next((file_of[name] for name in ("train", "trainval", "") if name in file_of), None)
    val = next((file_of[name] for name in ("val", "test") if name in file_of), None)
    if train is None and val is None:
        train = files[0]
    for key, file in (("train", train), ("val", val)):
        if file is not None:
            images, annotations = shlex.quote(str(base)), shlex.quote(str(file))
            lines.append(f"use: data.{key}.images={images} data.{key}.annotations={annotations}")
    return lines


if __name__ == "__main__":
    sys.exit(main())
