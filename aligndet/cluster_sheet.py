"""A picture of some clusters, a row of crops for each, to see at a glance what they have in common.

Legend: M boxes of one image.
"""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageOps
from tqdm import tqdm

from data.box_labels import BoxLabels
from data.drawing import save_picture
from data.fonts import CaptionFont
from data.processes import is_quiet
from data.views import BoxSource

ROWS, CROPS = 12, 16  # clusters, and boxes of each
SIDE, GAP, MARGIN = 96, 4, 88  # pixels: of a crop, between two, and for the text on the left
PAPER, INK = (255, 255, 255), (0, 0, 0)


def draw_sheet(source: BoxSource, labels: BoxLabels, path: Path, seed: int = 0) -> None:
    """Draw random boxes of a few clusters, from the largest cluster to a small one.

    Args:
        source: of images and boxes.
        labels: the clusters of its boxes; an image's first ones, if it has more boxes.
        path: a JPEG or PNG file to write.
        seed: of the choice of the boxes.

    Raises:
        DataError: an image cannot be read.
        StorageError: the file cannot be written.
    """
    clusters = evenly_spaced_clusters(labels)
    chosen = choose_boxes(labels, clusters, seed)
    wanted: dict[int, list[tuple[int, int, int]]] = {}  # of an image: row, column, box
    for row, places in enumerate(chosen):
        for column, (image, box) in enumerate(places):
            wanted.setdefault(image, []).append((row, column, box))
    size = MARGIN + CROPS * (SIDE + GAP), GAP + max(1, len(clusters)) * (SIDE + GAP)
    sheet = Image.new("RGB", size, PAPER)
    for image in tqdm(sorted(wanted), "sheet", delay=2, leave=False, disable=is_quiet()):
        picture, record = source.read(image)
        for row, column, box in wanted[image]:
            crop = ImageOps.pad(cut(picture, record.boxes[box].tolist()), (SIDE, SIDE), color=PAPER)
            sheet.paste(crop, (MARGIN + column * (SIDE + GAP), GAP + row * (SIDE + GAP)))
    counts = np.bincount(labels.values, minlength=labels.count)
    draw, font = ImageDraw.Draw(sheet), CaptionFont().at(16)
    for row, cluster in enumerate(clusters):
        text = f"{cluster + 1}\n{counts[cluster]:,}"  # as its category, whose ids start at 1
        draw.text((8, GAP + row * (SIDE + GAP) + SIDE // 3), text, INK, font)
    save_picture(sheet, path)


def evenly_spaced_clusters(labels: BoxLabels) -> list[int]:
    """At most `ROWS` clusters, evenly spaced from the largest to the smallest that fills a row."""
    counts = np.bincount(labels.values, minlength=labels.count)
    order = np.argsort(-counts, kind="stable")
    full = order[counts[order] >= CROPS]
    if len(full) < ROWS:
        full = order[counts[order] > 0][:ROWS]
    places = np.linspace(0, len(full) - 1, min(ROWS, len(full))).round().astype(int)
    return full[places].tolist()


def choose_boxes(labels: BoxLabels, clusters: list[int], seed: int) -> list[list[tuple[int, int]]]:
    """Random boxes, at most `CROPS`, of each cluster, as (image, place among its boxes)."""
    rng, chosen = random.Random(f"sheet {seed}"), []
    for cluster in clusters:
        members = (labels.values == cluster).nonzero()[0].tolist()
        rows = rng.sample(members, min(CROPS, len(members)))
        images = np.searchsorted(labels.starts, rows, "right") - 1
        places = np.array(rows) - labels.starts[images]
        chosen.append(list(zip(images.tolist(), places.tolist(), strict=True)))
    return chosen


def cut(image: Image.Image, box: list[float]) -> Image.Image:
    """The pixels of a box, at least one."""
    left, top = int(box[0]), int(box[1])
    right, bottom = max(left + 1, round(box[2])), max(top + 1, round(box[3]))
    return image.crop((left, top, right, bottom))
