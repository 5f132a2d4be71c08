"""Pictures of one shape each, of other kinds than in `data/shapes.py`, in a folder for each kind.

    python -m data.single_shapes --output datasets/single_shapes --count 1000

They stand in for ImageNet where no photographs are at hand: a backbone that has learnt to name them
(`pretrain.py --stage image`, method `supervised`) has never seen a shape, or a picture, of the
dataset with boxes.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from data.generated import write_once
from data.outlines import OTHER_CLASSES, OTHER_OUTLINES
from data.shapes import JPEG_QUALITY, Shape, background, paint, typical_look, window_around

SETTINGS = "single_shapes.json"  # the file that holds them
VERSION = 1  # raise it whenever a change alters the pictures
DIAMETERS = (0.45, 0.95)  # log-uniform, as a fraction of the side
STREAM = 2  # in the seed; shapes.py has 0 and 1 for its splits


def draw_single(rng: np.random.Generator, kind: str, size: int) -> np.ndarray:
    """A picture (size, size, 3) uint8 with one shape of this kind about its middle."""
    canvas = background(rng, size, size, size)
    low, high = np.log(DIAMETERS)
    shape = Shape(
        kind=kind,
        x=size * rng.uniform(0.35, 0.65),
        y=size * rng.uniform(0.35, 0.65),
        radius=0.5 * size * math.exp(rng.uniform(low, high)),
        stretch=math.exp(rng.uniform(-0.35, 0.35)),
        angle=rng.uniform(0, 2 * math.pi),
    )
    window = window_around(shape)
    distance = OTHER_OUTLINES[kind](window.u, window.v) * shape.radius
    paint(rng, canvas, window, distance, typical_look(kind, OTHER_CLASSES))
    return canvas.round().clip(0, 255).astype(np.uint8)


def generate(output: str | Path, count: int = 1000, size: int = 64, seed: int = 0) -> None:
    """Write `output/KIND/000000.jpg ...`, complete or not at all; the kinds take turns.

    It returns at once if exactly this dataset is there already.

    Args:
        output: folder to create; an empty one may exist.
        count: number of pictures, at least one of each kind.
        size: pixels of a side, at least 32.
        seed: any integer from 0 up.

    Raises:
        ValueError: a number is out of range.
        DataError: `output` holds something else.
    """
    for key, value, least in (
        ("count", count, len(OTHER_CLASSES)), ("size", size, 32), ("seed", seed, 0)
    ):  # fmt: skip
        if value < least:
            raise ValueError(f"{key} is {value}; give a number from {least} up")
    settings = {"version": VERSION, "count": count, "size": size, "seed": seed}

    def write(folder: Path) -> None:
        for kind in OTHER_CLASSES:
            (folder / kind).mkdir()
        for index in tqdm(range(count), desc="single shapes", unit="image"):
            kind = OTHER_CLASSES[index % len(OTHER_CLASSES)]
            pixels = draw_single(np.random.default_rng([seed, STREAM, index]), kind, size)
            name = folder / kind / f"{index:06d}.jpg"
            Image.fromarray(pixels).save(name, quality=JPEG_QUALITY)

    def missing(folder: Path) -> str | None:
        return None if len(list(folder.glob("*/*.jpg"))) == count else "files"

    write_once(Path(output), SETTINGS, settings, "set of single shapes", missing, write)


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="Write pictures of one shape, by kind.")
    parser.add_argument("--output", required=True, help="folder to create")
    parser.add_argument("--count", type=int, default=1000, help="images (1000)")
    parser.add_argument("--size", type=int, default=64, help="image side, pixels (64)")
    parser.add_argument("--seed", type=int, default=0, help="another seed gives other pictures (0)")
    options = parser.parse_args(arguments)
    try:
        generate(**vars(options))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{options.output}: {options.count} images of {len(OTHER_CLASSES)} kinds")
    return 0


if __name__ == "__main__":
    sys.exit(main())
