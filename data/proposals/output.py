"""Write what `python -m data.proposals` leaves: the COCO JSON, and a list of bad images.

Legend: P proposals.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from data.atomic_files import open_atomic
from data.json_checksum import ChecksumWriter
from data.plain_text import printable, say
from data.proposals.workers import Bad

CATEGORIES = [{"id": 1, "name": "object"}]
NAMED = 10  # bad images on the screen; if there are more, a file lists all


def write_proposals(
    images: Sequence[dict[str, Any]],
    boxes_of: Callable[[str], np.ndarray],
    output: Path,
    info: dict[str, Any],
) -> int:
    """Write COCO JSON all or nothing; only one image's boxes are in memory at a time.

    Args:
        images: complete COCO entries.
        boxes_of: gives (P, 4) float64 xyxy boxes in pixels for a file name, best first.
        output: file to write.
        info: how it was made.

    Returns:
        The number of boxes.
    """
    count = 0
    with open_atomic(output) as opened:
        file = ChecksumWriter(opened)
        file.write(f'{{"info": {json.dumps(info)}, "images": {json.dumps(images)}, ')
        file.write('"annotations": [')
        for image in tqdm(images, desc="writing", unit="image", delay=2, leave=False):
            for annotation in annotations_of(image["id"], boxes_of(image["file_name"])):
                file.write(", " if count else "")
                count += 1
                file.write(json.dumps({"id": count, **annotation}))
        file.write(f'], "categories": {json.dumps(CATEGORIES)}')
        file.end()
    return count


def annotations_of(image_id: int | str, boxes: np.ndarray) -> Iterator[dict[str, Any]]:
    """COCO annotations, without `id`, of ranked boxes (P, 4) xyxy."""
    for rank, (x1, y1, x2, y2) in enumerate(boxes.tolist()):
        w, h = round(x2 - x1, 2), round(y2 - y1, 2)
        yield {
            "image_id": image_id,
            "category_id": 1,
            "bbox": [x1, y1, w, h],
            "area": round(w * h, 2),
            "iscrowd": 0,
            "score": round(1 - rank / len(boxes), 6),
        }


def report_bad(bad: Sequence[Bad], total: int, output: Path, skip: bool) -> None:
    """Name unusable images on stderr; if there are many, list all in `OUTPUT.bad.txt`."""
    listing = output.with_name(f"{output.name}.bad.txt")
    listing.unlink(missing_ok=True)  # of an earlier run
    if not bad:
        return
    sentence = f"{len(bad):,} of {total:,} images can't be used and are left out"
    if skip:
        print(f"warning: {sentence}:", file=sys.stderr)
    else:
        print(
            f"error: {sentence}; mend them and run the command again, which searches only what is "
            "missing, or accept it with --skip-bad:",
            file=sys.stderr,
        )
    for image in bad[:NAMED]:
        say(f"  {image.reason}", sys.stderr)
    if len(bad) > NAMED:
        with open_atomic(listing) as file:
            file.writelines(f"{printable(image.reason)}\n" for image in bad)
        print(f"  and {len(bad) - NAMED:,} more; {listing} lists all", file=sys.stderr)
