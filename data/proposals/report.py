"""What a run of `python -m data.proposals` prints at its end.

Legend: P proposals, M ground-truth boxes or masks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from data.counting import count
from data.proposals.recall import best_mask_iou, measure_recall
from data.proposals.sources import ObjectMasks


def print_recall(
    truth: Mapping[str, Tensor], files: Sequence[str], boxes_of: Callable[[str], np.ndarray]
) -> None:
    """Print how many objects the boxes cover.

    Args:
        truth: (M, 4) xyxy objects of labelled images, by file.
        files: of the images that have boxes.
        boxes_of: gives (P, 4) xyxy boxes for a file.
    """
    both = [file for file in files if file in truth]
    report = measure_recall(
        [
            torch.from_numpy(boxes_of(file)).float()
            for file in tqdm(both, desc="recall", unit="image", delay=2, leave=False)
        ],
        [truth[file] for file in both],
    )
    for prefix, name in (("", "objects"), ("large_", "objects larger than 32 x 32 px")):
        print(
            f"{report[prefix + 'objects']} {name}: "
            f"recall at IoU 0.5 {100 * report[prefix + 'recall']:.1f} %, "
            f"mean best IoU {report[prefix + 'mean_best_iou']:.3f}"
        )
    print(f"{report['boxes_per_image']:.1f} boxes per image, {count(len(both), 'image')}")


def print_mask_recall(
    truth: Mapping[str, ObjectMasks],
    files: Sequence[str],
    masks_of: Callable[[str], Sequence[bytes] | None],
) -> None:
    """Print how well masks cover the objects that have one.

    Args:
        truth: the masks of the objects, by file.
        files: of the images that have boxes.
        masks_of: gives P masks for a file.
    """
    best = torch.cat(
        [torch.zeros(0)]
        + [
            best_mask_iou(masks_of(file) or (), *truth[file])
            for file in tqdm(files, desc="recall", unit="image", delay=2, leave=False)
            if file in truth
        ]
    )
    if len(best):
        recall, mean = 100 * (best >= 0.5).float().mean().item(), best.mean().item()
        print(
            f"{count(len(best), 'object')} with a mask: recall at mask IoU 0.5 {recall:.1f} %, "
            f"mean best mask IoU {mean:.3f}"
        )


def print_summary(output: Path, images: int, boxes: int, start: float) -> None:
    """Print the last line of a run that started at `time.perf_counter()` = `start`."""
    print(
        f"{count(images, 'image')}, {count(boxes, 'box')} ({boxes / images:.1f} per image) in "
        f"{time.perf_counter() - start:.1f} s: {output}"
    )
