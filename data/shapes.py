"""The built-in dataset: generated pictures of four kinds of shape, in COCO format.

    python -m data.shapes --output datasets/shapes --train 2000 --val 500

It lets every script of this project run, and be measured, where no labelled images are at hand.
As in photographs, objects of a kind look alike: three in four shapes have the hue and the texture
that are typical of their kind, the fourth has any. Only the outline tells for certain what a shape
is; shading, size, rotation and aspect ratio are independent of it. Backgrounds are cluttered with
lines and blobs of no class. Shapes hide each other and reach beyond the image, but at least
40 % of every shape stays visible; a shape that would break this rule is not drawn, so every shape
in a picture is annotated.

A box is the full extent of the *visible mask* inside the image: the smallest box around the
shape's pixels that no later shape covers. `area` and `segmentation` (uncompressed RLE) are of
the same mask.

Legend: H x W the image, h x w a window around one shape; pixel (0, 0) is centred at (0.5, 0.5).
Lengths are in pixels; in local coordinates, a shape fits into the unit circle.
"""

from __future__ import annotations

import argparse
import colorsys
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw
from tqdm import tqdm

from data.generated import write_once
from data.json_files import write_json_atomic
from data.outlines import CLASSES, OUTLINES

VERSION = 4  # raise it whenever a change alters the pictures
SPLITS = ("train", "val")
ASPECTS = ((1.0, 1.0), (0.8, 1.0), (1.0, 0.8), (0.9, 1.0), (1.0, 0.9))  # height, width of `size`
OBJECTS = (1, 5)  # fewest and most shapes wanted in an image
DIAMETERS = (0.2, 0.45)  # log-uniform, as a fraction of `size`
MIN_VISIBLE = 0.4  # of a shape's pixels, those outside the image included
MIN_CONTRAST = 90.0  # between a shape's colour and what it covers: Euclidean, RGB of 0..255
TYPICAL = 0.75  # share of shapes with the hue and texture of their kind
PATTERNS = 6  # kinds of texture
JPEG_QUALITY = 92


@dataclass(frozen=True)
class Shape:
    """One shape: its outline, stretched along its own axes, rotated, and put into the image."""

    kind: str  # a key of OUTLINES
    x: float  # centre, pixels
    y: float
    radius: float  # pixels per local unit, before the stretch
    stretch: float  # local x grows by sqrt(stretch), local y shrinks by it
    angle: float  # radians


@dataclass(frozen=True)
class Window:
    """The pixels around a shape; it may reach beyond the image."""

    top: int
    left: int
    u: np.ndarray  # (h, w) local x of every pixel
    v: np.ndarray  # (h, w) local y of every pixel

    def inside(self, height: int, width: int) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
        """Index of the window's visible part: in the image, and in the window."""
        top, left = self.top, self.left
        y0, y1 = np.clip((top, top + self.u.shape[0]), 0, height)
        x0, x1 = np.clip((left, left + self.u.shape[1]), 0, width)
        return np.s_[y0:y1, x0:x1], np.s_[y0 - top : y1 - top, x0 - left : x1 - left]


def window_around(shape: Shape) -> Window:
    """The pixels a shape can touch, its antialiased edge included."""
    stretch = math.sqrt(shape.stretch)
    reach = math.ceil(1.2 * shape.radius * max(stretch, 1 / stretch)) + 2
    top, left = math.floor(shape.y) - reach, math.floor(shape.x) - reach
    offsets = np.arange(2 * reach + 1, dtype=np.float32) + 0.5
    y = (top + offsets - np.float32(shape.y))[:, None] / shape.radius
    x = (left + offsets - np.float32(shape.x))[None, :] / shape.radius
    cos, sin = math.cos(shape.angle), math.sin(shape.angle)
    return Window(top, left, (x * cos + y * sin) / stretch, (y * cos - x * sin) * stretch)


def silhouette(shape: Shape, height: int, width: int) -> tuple[np.ndarray, int]:
    """A shape's pixels inside the image, (H, W) bool, and the number of all its pixels."""
    window = window_around(shape)
    mask = OUTLINES[shape.kind](window.u, window.v) < 0
    in_image, in_window = window.inside(height, width)
    full = np.zeros((height, width), dtype=bool)
    full[in_image] = mask[in_window]
    return full, int(mask.sum())


def _random_shape(rng: np.random.Generator, height: int, width: int, size: int) -> Shape:
    low, high = np.log(DIAMETERS)
    return Shape(
        kind=CLASSES[rng.integers(len(CLASSES))],
        x=rng.uniform(0, width),
        y=rng.uniform(0, height),
        radius=0.5 * size * math.exp(rng.uniform(low, high)),
        stretch=math.exp(rng.uniform(-0.35, 0.35)),
        angle=rng.uniform(0, 2 * math.pi),
    )


def place_shapes(
    rng: np.random.Generator, height: int, width: int, size: int
) -> tuple[list[Shape], list[np.ndarray]]:
    """Draw shapes, back to front, and the visible mask (H, W) of each.

    A candidate is rejected if it, or a shape that it covers, would keep less than MIN_VISIBLE of
    its pixels; a crowded image may therefore end up with fewer shapes than wanted.
    """
    shapes: list[Shape] = []
    masks: list[np.ndarray] = []
    areas: list[int] = []
    wanted = rng.integers(OBJECTS[0], OBJECTS[1] + 1)
    for _ in range(100):
        shape = _random_shape(rng, height, width, size)
        mask, area = silhouette(shape, height, width)
        new_masks = [earlier & ~mask for earlier in masks] + [mask]
        new_areas = areas + [area]
        if all(m.sum() >= MIN_VISIBLE * a for m, a in zip(new_masks, new_areas, strict=True)):
            shapes, masks, areas = shapes + [shape], new_masks, new_areas
        if len(shapes) == wanted:
            break
    return shapes, masks


def _noise(rng: np.random.Generator, height: int, width: int, cells: int) -> np.ndarray:
    """Smooth noise (H, W) in about -1..1 with `cells` bumps along a side."""
    grid = Image.fromarray(rng.uniform(-1, 1, (cells, cells)).astype(np.float32))
    return np.asarray(grid.resize((width, height), Image.Resampling.BICUBIC))


def _pattern(rng: np.random.Generator, kind: int, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """A texture in 0..1 for every pixel: plain, graded, stripes, checks, dots or noise."""
    frequency, angle = rng.uniform(4, 14), rng.uniform(0, math.pi)
    phase_a, phase_b = rng.uniform(0, 2 * math.pi, 2)
    a = math.cos(angle) * u + math.sin(angle) * v
    b = math.cos(angle) * v - math.sin(angle) * u
    if kind == 0:
        return np.zeros_like(u)
    if kind == 1:
        return np.clip(0.5 + 0.5 * a, 0, 1)
    if kind == 2:
        wave = 2 * np.sin(frequency * a + phase_a)
    elif kind == 3:
        wave = 3 * np.sin(frequency * a + phase_a) * np.sin(frequency * b + phase_b)
    elif kind == 4:
        wave = 3 * (np.sin(frequency * a + phase_a) + np.sin(frequency * b + phase_b) - 0.8)
    else:
        wave = 1.5 * _noise(rng, *u.shape, cells=int(frequency))
    return np.clip(0.5 + 0.5 * wave, 0, 1)


def _contrasting_colour(
    rng: np.random.Generator, covered: np.ndarray, hue: float | None
) -> np.ndarray:
    """An RGB colour, of about this hue if given, that stands out from the mean of the `covered`
    pixels (n, 3)."""
    mean = covered.mean(axis=0) if len(covered) else np.full(3, 128.0)
    while True:
        if hue is None:
            colour = rng.uniform(15, 240, 3)
        else:
            near = (hue + rng.normal(0, 0.03)) % 1.0
            rgb = colorsys.hsv_to_rgb(near, rng.uniform(0.6, 1), rng.uniform(0.4, 0.95))
            colour = 255.0 * np.array(rgb)
        if np.linalg.norm(colour - mean) >= MIN_CONTRAST:
            return colour


class Look(NamedTuple):
    """What is typical of a kind of shape beside its outline."""

    hue: float  # in turns of the colour wheel
    pattern: int  # see `_pattern`


def typical_look(kind: str, kinds: Sequence[str]) -> Look:
    """The look of one of these kinds; hues are spread evenly."""
    number = kinds.index(kind)
    return Look(number / len(kinds), number % PATTERNS)


def paint(
    rng: np.random.Generator,
    canvas: np.ndarray,
    window: Window,
    distance: np.ndarray,
    look: Look | None,
) -> None:
    """Fill `distance < 0` (h, w), in pixels, on the canvas (H, W, 3) with a shaded texture;
    most often with the hue and the texture of `look`, if given."""
    in_image, part = window.inside(*canvas.shape[:2])
    coverage = np.clip(0.5 - distance[part], 0, 1)[..., None]  # anti-aliased edge
    hue, pattern = None, int(rng.integers(PATTERNS))
    if look is not None and rng.random() < TYPICAL:
        hue, pattern = look
    colour = _contrasting_colour(rng, canvas[in_image][coverage[..., 0] > 0.5], hue)
    second = colour + rng.normal(0, 1, 3) * rng.uniform(5, 30)
    mix = _pattern(rng, pattern, window.u, window.v)[part][..., None]
    fill = colour + mix * (second - colour)
    light, angle = rng.uniform(0, 0.3), rng.uniform(0, 2 * math.pi)
    shade = 1 + light * (math.cos(angle) * window.u + math.sin(angle) * window.v)[part]
    if rng.random() < 0.3:  # a dark rim
        shade = shade * (1 - 0.45 * np.clip(2.5 + distance[part], 0, 1))
    canvas[in_image] += coverage * (np.clip(fill * shade[..., None], 0, 255) - canvas[in_image])


def _paint_blob(rng: np.random.Generator, canvas: np.ndarray, size: int) -> None:
    """A closed shape of no class, textured like the others: a circle with an uneven radius."""
    shape = _random_shape(rng, *canvas.shape[:2], size)
    window = window_around(shape)
    angle = np.arctan2(window.v, window.u)
    radius = np.full_like(angle, 0.65)
    for waves in (2, 3, 4, 5):
        radius += rng.uniform(0.05, 0.14) * np.cos(waves * angle + rng.uniform(0, 2 * math.pi))
    paint(rng, canvas, window, (np.hypot(window.u, window.v) - radius) * shape.radius, None)


def _paint_lines(rng: np.random.Generator, canvas: np.ndarray) -> np.ndarray:
    """Bent lines across the canvas, drawn at twice its resolution for smooth edges."""
    height, width = canvas.shape[:2]
    image = Image.fromarray(canvas.clip(0, 255).astype(np.uint8)).resize((2 * width, 2 * height))
    draw = ImageDraw.Draw(image)
    for _ in range(rng.integers(0, 3)):
        points = rng.uniform(-0.1, 1.1, (rng.integers(2, 5), 2)) * (2 * width, 2 * height)
        colour = tuple(int(c) for c in rng.integers(15, 240, 3))
        draw.line([tuple(p) for p in points.tolist()], colour, int(rng.integers(2, 9)))
    return np.asarray(image.reduce(2), dtype=np.float32)


def background(rng: np.random.Generator, height: int, width: int, size: int) -> np.ndarray:
    """A cluttered canvas (H, W, 3) float32: colour gradients, regions, lines, blobs, noise."""
    mean = rng.uniform(60, 195) + rng.uniform(-25, 25, 3)  # most real scenes are not vivid
    spread = rng.uniform(10, 30)
    channels = [m + spread * _noise(rng, height, width, int(rng.integers(2, 4))) for m in mean]
    canvas = np.stack(channels, axis=-1).astype(np.float32)
    for _ in range(rng.integers(0, 3)):  # a region with another tint, its border soft or sharp
        border = np.clip(0.5 + rng.uniform(2, 30) * _noise(rng, height, width, 4), 0, 1)
        canvas += border[..., None] * rng.normal(0, 20, 3).astype(np.float32)
    canvas = _paint_lines(rng, canvas)
    for _ in range(rng.integers(0, 2)):
        _paint_blob(rng, canvas, size)
    for cells in (12, 30, 70):
        canvas += rng.uniform(0, 10) * _noise(rng, height, width, cells)[..., None]
    return canvas


def draw_image(
    rng: np.random.Generator, size: int
) -> tuple[np.ndarray, list[Shape], list[np.ndarray]]:
    """One picture: pixels (H, W, 3) uint8, its shapes back to front, their visible masks (H, W)."""
    height, width = (round(size * side) for side in ASPECTS[rng.integers(len(ASPECTS))])
    shapes, masks = place_shapes(rng, height, width, size)
    canvas = background(rng, height, width, size)
    for shape in shapes:
        window = window_around(shape)
        distance = OUTLINES[shape.kind](window.u, window.v) * shape.radius
        paint(rng, canvas, window, distance, typical_look(shape.kind, CLASSES))
    canvas += rng.uniform(1, 4) * rng.standard_normal(canvas.shape, dtype=np.float32)
    return canvas.round().clip(0, 255).astype(np.uint8), shapes, masks


def _run_lengths(mask: np.ndarray) -> dict:
    """COCO's uncompressed RLE: lengths of alternating runs, column by column, zeros first."""
    flat = np.concatenate([[False], mask.ravel(order="F")])
    starts = np.flatnonzero(flat[1:] != flat[:-1])
    counts = np.diff(starts, prepend=0, append=mask.size)
    return {"size": list(mask.shape), "counts": counts.tolist()}


def _annotation(mask: np.ndarray, kind: str) -> dict:
    rows, cols = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    x, y = int(cols[0]), int(rows[0])
    return {
        "category_id": CLASSES.index(kind) + 1,
        "bbox": [x, y, int(cols[-1]) + 1 - x, int(rows[-1]) + 1 - y],
        "area": int(mask.sum()),
        "iscrowd": 0,
        "segmentation": _run_lengths(mask),
    }


def _write_split(folder: Path, split: str, count: int, size: int, seed: int) -> None:
    images, annotations = [], []
    (folder / "images" / split).mkdir(parents=True)
    (folder / "annotations").mkdir(exist_ok=True)
    for index in tqdm(range(count), desc=f"shapes {split}", unit="image"):
        rng = np.random.default_rng([seed, SPLITS.index(split), index])
        pixels, shapes, masks = draw_image(rng, size)
        name = f"{index:06d}.jpg"
        Image.fromarray(pixels).save(folder / "images" / split / name, quality=JPEG_QUALITY)
        height, width = pixels.shape[:2]
        images.append({"id": index + 1, "file_name": name, "height": height, "width": width})
        for shape, mask in zip(shapes, masks, strict=True):
            place = {"id": len(annotations) + 1, "image_id": index + 1}
            annotations.append(place | _annotation(mask, shape.kind))
    categories = [{"id": i, "name": name} for i, name in enumerate(CLASSES, start=1)]
    coco = {"images": images, "annotations": annotations, "categories": categories}
    write_json_atomic(coco, folder / "annotations" / f"{split}.json")


def _missing(output: Path, settings: dict[str, int]) -> str | None:
    for split in SPLITS:
        present = len(list((output / "images" / split).glob("*.jpg")))
        if present != settings[split] or not (output / "annotations" / f"{split}.json").is_file():
            return f"{split} files"
    return None


def generate(
    output: str | Path, train: int = 2000, val: int = 500, size: int = 160, seed: int = 0
) -> None:
    """Write the dataset into the folder `output`, complete or not at all.

    `output` gets `images/{train,val}/000000.jpg ...`, `annotations/{train,val}.json` and
    `shapes.json` (the settings). It returns at once if exactly this dataset is there already.
    An image depends only on (seed, split, index, size): a larger dataset begins with the smaller.

    Args:
        output: folder to create; an empty one may exist.
        train, val: numbers of images, at least 1.
        size: longer image side in pixels, at least 32; the shorter is 80, 90 or 100 % of it.
        seed: any integer from 0 up.

    Raises:
        ValueError: a number is out of range.
        DataError: `output` holds something else.
    """
    settings = {"version": VERSION, "train": train, "val": val, "size": size, "seed": seed}
    for key, least in (("train", 1), ("val", 1), ("size", 32), ("seed", 0)):
        if settings[key] < least:
            raise ValueError(f"{key} is {settings[key]}; give a number from {least} up")

    def write(folder: Path) -> None:
        for split in SPLITS:
            _write_split(folder, split, settings[split], size, seed)

    missing = partial(_missing, settings=settings)
    write_once(Path(output), "shapes.json", settings, "shapes dataset", missing, write)


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="Write the built-in shapes dataset as COCO.")
    parser.add_argument("--output", required=True, help="folder to create")
    parser.add_argument("--train", type=int, default=2000, help="training images (2000)")
    parser.add_argument("--val", type=int, default=500, help="validation images (500)")
    parser.add_argument("--size", type=int, default=160, help="longer image side, pixels (160)")
    parser.add_argument("--seed", type=int, default=0, help="another seed gives other pictures (0)")
    options = parser.parse_args(arguments)
    try:
        generate(**vars(options))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{options.output}: {options.train} training and {options.val} validation images")
    return 0


if __name__ == "__main__":
    sys.exit(main())
