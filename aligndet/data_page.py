"""The lines of `python -m data.check`: counts, sizes and positives of the images of a dataset.

Legend: M boxes.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from statistics import median

import torch
from torch import nn
from tqdm import tqdm

from aligndet.positives import UNITS, positives_per_box
from data.coco import Record
from data.transforms import resized_size

CLASSES = 12  # lines of classes; the rarest ones are summed up
BAR = 40  # characters of the longest bar
ALIKE = 5  # problems of one kind that are printed
SAMPLE = 200  # images whose positives are counted
EDGES = (8, 16, 32, 64, 128, 256)  # of the bins of box sizes, pixels


def class_lines(names: Sequence[str], labels: Sequence[int]) -> list[str]:
    """The number of boxes of each class with a bar, the most frequent first.

    Args:
        names: of the classes.
        labels: of all boxes, indices into `names`.
    """
    if not names:
        return []
    count = Counter({name: 0 for name in range(len(names))})
    count.update(labels)
    ranked = count.most_common()
    shown, rest = ranked[:CLASSES], ranked[CLASSES:]
    widest = max(len(names[label]) for label, _ in shown)
    most = max(shown[0][1], 1)
    lines = [
        f"{names[label]:<{widest}} {number:>9,} {'#' * round(BAR * number / most)}".rstrip()
        for label, number in shown
    ]
    if rest:
        few = ", ".join(f"{names[label]} {number:,}" for label, number in rest[-3:])
        lines.append(f"and {len(rest):,} more, the rarest: {few}")
    missing = [names[label] for label, number in ranked if not number]
    if missing:
        more = ", ..." if len(missing) > 5 else ""
        lines.append(f"without a box: {len(missing):,} ({', '.join(missing[:5])}{more})")
    return lines


def size_lines(
    sizes: Sequence[tuple[int, int]], short_sides: Sequence[int] = (), max_side: int = 0
) -> list[str]:
    """The sizes of the image files, and those that the network sees.

    Args:
        sizes: (height, width) of each image.
        short_sides, max_side: see `data.transforms.resized_size`; none if the images are cropped.
    """
    lines = [f"image files: {_range_of(sizes)}"]
    ends = {min(short_sides), max(short_sides)} if short_sides else ()
    for short_side in sorted(ends):
        seen = [resized_size(*size, short_side, max_side) for size in sizes]
        factors = [a[0] / b[0] for a, b in zip(seen, sizes, strict=True)]
        lines.append(
            f"as the network sees them, short side {short_side}: {_range_of(seen)}; "
            f"scaled by {min(factors):.2f} to {max(factors):.2f}"
        )
    return lines


def _range_of(sizes: Sequence[tuple[int, int]]) -> str:
    """The smallest, the middle and the largest of some (height, width), by area."""
    ordered = sorted(sizes, key=lambda size: (size[0] * size[1], size))
    picked = dict.fromkeys([ordered[0], ordered[len(ordered) // 2], ordered[-1]])
    return ", ".join(f"{width} x {height}" for height, width in picked) + " (width x height)"


def per_image_line(numbers: Sequence[int], what: str) -> str:
    """How many boxes an image has."""
    return f"{what} per image: {min(numbers)} to {max(numbers)}, median {median(numbers):g}"


def positives_lines(
    detector: nn.Module,
    name: str,
    records: Sequence[Record],
    short_sides: Sequence[int],
    max_side: int,
    limit: int | None = None,
) -> list[str]:
    """A table of box sizes and of what the detector's assigner finds for them.

    Args:
        detector: see `positives_per_box`.
        name: `model.detector`.
        records: images with boxes.
        short_sides, max_side: of training; for each image, one of the sides is drawn.
        limit: only the first boxes of an image are taken; None: all.
    """
    rng = random.Random("positives")
    drawn = len(records) > SAMPLE
    order = rng.sample(range(len(records)), len(records)) if drawn else range(len(records))
    # Not all of them are made: they may be many.
    chosen = list(islice((r for r in map(records.__getitem__, order) if len(r.boxes)), SAMPLE))
    sizes, positives = [], []
    for record in tqdm(chosen, "positives", unit="image", leave=False):
        height, width = resized_size(record.height, record.width, rng.choice(short_sides), max_side)
        factors = torch.tensor([width / record.width, height / record.height]).repeat(2)
        boxes = record.boxes[:limit] * factors  # (M, 4)
        sides = boxes[:, 2:] - boxes[:, :2]
        sizes.append(sides.prod(dim=1).sqrt())
        positives.append(positives_per_box(detector, name, height, width, boxes))
    if not chosen:
        return []
    size, count = torch.cat(sizes), torch.cat(positives)
    part = f" ({len(chosen):,} images, drawn at random)" if drawn else ""
    lines = [
        f"positives ({UNITS[name]}) per box, by the root of its area, pixels of the network{part}:",
        f"{'size':>10} {'boxes':>8} {'positives':>10} {'boxes with none':>16}",
    ]
    bins = torch.bucketize(size, torch.tensor(EDGES, dtype=size.dtype), right=True)
    for number in range(len(EDGES) + 1):
        inside = count[bins == number]
        if len(inside):
            none = int((inside == 0).sum())
            lines.append(
                f"{_bin_name(number):>10} {len(inside):>8,} {inside.float().mean():>10.1f} "
                f"{none:>8,} ({none / len(inside):.0%})"
            )
    none = int((count == 0).sum())
    if none:
        lines.append(
            f"{none:,} of {len(count):,} boxes have no positive and are not learned from at this "
            "size; larger data.short_sides help small ones"
        )
    return lines


def _bin_name(number: int) -> str:
    if number == 0:
        return f"< {EDGES[0]}"
    if number == len(EDGES):
        return f">= {EDGES[-1]}"
    return f"{EDGES[number - 1]}-{EDGES[number]}"


def problem_lines(problems: Sequence[str]) -> list[str]:
    """Problems, sorted by kind; of many alike only the first are shown."""
    kinds: dict[str, list[str]] = {}
    for problem in problems:
        # What differs between alike problems: the file, numbers, quoted texts.
        kind = re.sub(r"^.*?: |\d[\d.]*|'[^']*'|\"[^\"]*\"|\[[^\]]*\]", "", problem)
        kinds.setdefault(kind, []).append(problem)
    lines = []
    for alike in kinds.values():
        lines += [f"- {problem}" for problem in alike[:ALIKE]]
        if len(alike) > ALIKE:
            lines.append(f"  and {len(alike) - ALIKE:,} more like it")
    return lines
