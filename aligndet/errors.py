"""What a fine-tuned detector gets wrong, by kind, and what each kind costs it.

    python -m aligndet.errors RUN
    python -m aligndet.errors --annotations FILE.json --detections FILE.json [--images DIR]

The kinds are those of TIDE, see `aligndet/error_kinds.py`. RUN is the output_dir of finetune.py
after its evaluation; errors.jpg there shows the images with the most to correct.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from aligndet import cli
from aligndet.detection_errors import Errors, confusions, detection_errors
from aligndet.error_kinds import KINDS
from aligndet.error_pictures import error_sheet, worst
from aligndet.report_pictures import Validation
from aligndet.run_files import RunFiles
from data.coco_json import load_coco
from data.drawing import save_picture
from data.errors import DataError
from data.images import AS_STORED
from data.json_files import read_json

SHEET = "errors.jpg"
PAIRS = 10  # of classes that are confused, on the screen


def main() -> None:
    """Parse the command line, print the errors and draw the worst images."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("run", nargs="?", metavar="RUN", help="output_dir of finetune.py")
    add("--annotations", metavar="FILE", help="COCO JSON with the labels")
    add("--detections", metavar="FILE", help="COCO results, as of finetune.py or predict")
    add("--images", metavar="DIR", help="folder of the images, for the pictures")
    add("--iou", type=float, default=0.5, help="overlap that makes a detection right (0.5)")
    add("--masks", action="store_true", help="overlap of masks instead of boxes")
    add("--output", metavar="FILE", help="the sheet of pictures (RUN/errors.jpg)")
    add("--count", type=int, default=12, metavar="N", help="images on the sheet (12)")
    args = parser.parse_args()
    files = (args.annotations, args.detections)
    if args.run is None and None in files or args.run is not None and any(files):
        parser.error("give the directory of a run, or --annotations and --detections")
    with cli.one_line_errors(ValueError, DataError):
        data, content, results = _of_run(args.run) if args.run else _of_files(*files, args.images)
        errors = detection_errors(content, results, args.iou, args.masks)
        print(table(errors, data.names))
        output = args.output or (Path(args.run) / SHEET if args.run else None)
        picture = output and error_sheet(data, errors, worst(errors, args.count))
        if picture:
            save_picture(picture, Path(output))
            print(f"pictures: {output}")


def table(errors: Errors, names: Mapping[Any, str]) -> str:
    """The errors for the terminal.

    Args:
        names: of the classes by category id.
    """
    if errors.ap is None:
        return "the annotations hold no object, so there is no AP"
    lines = [f"AP at IoU {errors.iou:g}: {errors.ap:.1f}", "", f"{'error':<20}  count  AP lost"]
    for kind, lost in errors.cost.items():
        count = f"{errors.count[kind]:,}" if kind in KINDS else ""
        lines.append(f"{kind:<20} {count:>6} {lost:>8.1f}")
    pairs = confusions(errors, names)[:PAIRS]
    if pairs:
        lines += ["", "classes taken for others, by the summed scores:"]
    lines += [f"  {truth} as {other}: {n:,}, mean score {s:.2f}" for truth, other, n, s in pairs]
    return "\n".join(lines)


def _of_run(path: str) -> tuple[Validation, Mapping[str, Any], Sequence[Mapping[str, Any]]]:
    """What a run was evaluated on, and what it found."""
    run = RunFiles.read(path)
    config = run.data
    if run.detections is None:
        raise ValueError(
            f"{path}: has no detections.json, which finetune.py writes at its end; evaluate with: "
            f"python finetune.py --config {path}/config.yaml --eval-only --checkpoint {path}, then "
            f"give --annotations {config.val.annotations} --detections "
            f"{path}/evaluation_detections.json"
        )
    content = load_coco(config.val.annotations, config.crowd)
    return Validation.of(content, config.val.images, config.reading), content, run.detections


def _of_files(
    annotations: str, detections: str, images: str | None
) -> tuple[Validation, Mapping[str, Any], Sequence[Mapping[str, Any]]]:
    content = load_coco(annotations)
    folder = images or Path(annotations).parent
    return Validation.of(content, folder, AS_STORED), content, read_json(detections)


if __name__ == "__main__":
    main()
