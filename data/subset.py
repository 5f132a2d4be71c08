"""The low-data protocol: a fixed 1, 5 or 10 % of the labelled images, in five folds.

    python -m data.subset --annotations instances_train2017.json --percent 1 --fold 0

AlignDet's gain is largest when labels are few (paper, Figure 1). The files written here say which
images those are; results are the mean over the folds. Each fold is drawn independently, so two
folds may share images.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Collection
from fractions import Fraction
from pathlib import Path
from typing import Any

from data.coco_ids import Id, id_order
from data.coco_json import load_coco
from data.counting import count
from data.json_files import write_json_atomic
from data.plain_text import say

FOLDS = 5


def choose_ids(image_ids: Collection[Id], percent: float, fold: int) -> list[Id]:
    """The image ids of one fold, ascending, numbers before text.

    The choice depends on the set of ids, `percent` and `fold` alone. It holds `percent` of
    the ids, rounded down, but at least one.

    Args:
        percent: above 0, up to 100.
        fold: 0..4.

    Raises:
        ValueError: `percent` or `fold` is out of range.
    """
    if not 0 < percent <= 100:
        raise ValueError(f"percent is {percent:g}; give a number above 0 and up to 100")
    if not 0 <= fold < FOLDS:
        raise ValueError(f"fold is {fold}; give a number from 0 to {FOLDS - 1}")
    # random() with a string seed is the part of `random` that Python promises to keep the same.
    generator = random.Random(f"percent {percent:g} fold {fold}")
    ids = sorted(image_ids, key=id_order)
    shuffled = sorted((generator.random(), place) for place in range(len(ids)))
    exact_percent = Fraction(f"{percent:g}")  # 32.3 % of 1000 is 322.99... in floats
    number = max(1, int(len(ids) * exact_percent / 100))
    return [ids[place] for place in sorted(place for _, place in shuffled[:number])]


def subset(content: dict[str, Any], percent: float, fold: int) -> dict[str, Any]:
    """A COCO dict with the chosen images and exactly their annotations, both ordered by id.

    Categories and all other entries (`info`, `licenses`) stay as they are.

    Raises:
        ValueError: see `choose_ids`; also if `content` lists no image.
    """
    if not content["images"]:
        raise ValueError("there is no image to choose from; give a file that lists some")
    chosen = set(choose_ids([image["id"] for image in content["images"]], percent, fold))
    images = [image for image in content["images"] if image["id"] in chosen]
    annotations = [a for a in content["annotations"] if a["image_id"] in chosen]
    return content | {
        "images": sorted(images, key=lambda image: id_order(image["id"])),
        "annotations": sorted(annotations, key=lambda a: (id_order(a["image_id"]), a.get("id", 0))),
    }


def default_output(annotations: str | Path, percent: float, fold: int) -> Path:
    """`train.json` becomes `train_1percent_fold0.json` beside it."""
    path = Path(annotations)
    return path.with_name(f"{path.stem}_{percent:g}percent_fold{fold}.json")


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="Choose a few percent of the labelled images.")
    parser.add_argument("--annotations", required=True, help="COCO JSON to choose from")
    parser.add_argument("--percent", type=float, required=True, help="of the images: 1, 5 or 10")
    parser.add_argument("--fold", type=int, required=True, help=f"0 to {FOLDS - 1}")
    parser.add_argument("--output", help="COCO JSON to write (named after the input)")
    options = parser.parse_args(arguments)
    output = options.output or default_output(options.annotations, options.percent, options.fold)
    try:
        if Path(output).resolve() == Path(options.annotations).resolve():
            raise ValueError(f"{output}: would overwrite the input; give another --output")
        content = load_coco(options.annotations)
        part = subset(content, options.percent, options.fold)
        write_json_atomic(part, output)
    except (ValueError, OSError) as error:
        say(f"error: {error}", sys.stderr)
        return 1
    images, boxes = len(part["images"]), len(part["annotations"])
    total = count(len(content["images"]), "image")
    print(f"{output}: {images:,} of {total}, {count(boxes, 'box')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
