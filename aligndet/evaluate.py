"""Average precision with pycocotools, images spread over all ranks."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from aligndet import dist
from aligndet.amp import autocast
from aligndet.coco_scores import numbered, pycocotools_scores, usable_annotations
from aligndet.mask_evaluation import NO_MASKS, mask_sizes, truth_of_masks, without_boxes
from aligndet.mask_results import encode_masks
from data.bad_images import Note, say_nothing, without_news
from data.coco import Categories, read_categories
from data.counting import count
from data.loaders import Loader, iterate, to_device
from data.normalise import normalise_batch
from data.plain_text import printable
from models.checks import require_range

AP_KEYS = ("AP", "AP50", "AP75", "APs", "APm", "APl")  # of boxes
MASK_AP_KEYS = tuple(f"segm_{key}" for key in AP_KEYS)
TABLE_ROWS = 20  # classes in the terminal
MANY = 50_000  # detections; pycocotools takes seconds for as many


@dataclass(frozen=True)
class EvaluationConfig:
    """The `evaluation` section."""

    every: int | None = None  # steps between evaluations in training; null: at the end only
    batch_size: int | None = None  # images per process; null: as in training

    def __post_init__(self) -> None:
        for key in ("every", "batch_size"):
            require_range(f"evaluation.{key}", getattr(self, key), least=1)

    def due(self, step: int) -> bool:
        """Whether training is interrupted for an evaluation after `step` steps."""
        return self.every is not None and step % self.every == 0


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found; AP is in percent, and None where there is no object to find."""

    scores: dict[str, float | None]  # AP_KEYS, with masks also MASK_AP_KEYS: the mean over classes
    per_class: dict[str, float | None]  # AP of each class by name, in the order of the ids
    objects: dict[str, int]  # boxes to find of each class, crowds left out
    detections: list[dict[str, Any]]  # COCO results entries with the annotation file's ids
    segm_per_class: dict[str, float | None] = field(default_factory=dict)  # by masks, if scored
    remark: str | None = None  # what could not be scored, if anything


def coco_results(
    detections: Sequence[Mapping[str, Tensor]],
    image_ids: Sequence[int],
    image_sizes: Tensor,
    original_sizes: Sequence[tuple[int, int]],
    categories: Categories,
) -> list[dict[str, Any]]:
    """Detections of a batch as entries of a COCO results file, in pixels of the original images.

    Args:
        detections: for each image a dict of boxes (D, 4) xyxy, scores (D,), labels (D,), and maybe
            masks (D, S, S), probabilities inside the boxes.
        image_ids: COCO ids of the images.
        image_sizes: (N, 2) (h, w) the detector saw.
        original_sizes: (h, w) of the image files.
        categories: maps labels back to category ids.
    """
    results = []
    for found, image_id, size, original in zip(
        detections, image_ids, image_sizes.tolist(), original_sizes, strict=True
    ):
        scale = torch.tensor([original[1] / size[1], original[0] / size[0]]).repeat(2)
        corners = found["boxes"].cpu() * scale
        x1, y1, x2, y2 = corners.double().unbind(dim=1)
        boxes = torch.stack([x1, y1, x2 - x1, y2 - y1], dim=1).tolist()
        scores, labels = found["scores"].tolist(), found["labels"].tolist()
        entries = [
            {"image_id": image_id, "category_id": categories.ids[k], "bbox": b, "score": s}
            for b, s, k in zip(boxes, scores, labels, strict=True)
        ]
        if "masks" in found:
            masks = encode_masks({**found, "boxes": corners}, original)
            for entry, mask in zip(entries, masks, strict=True):
                entry["segmentation"] = mask
        results += entries
    return results


@torch.no_grad()
def detect(
    model: nn.Module,
    loader: Loader,
    categories: Categories,
    device: torch.device,
    amp: str = "none",
    note: Note = say_nothing,
) -> tuple[list[dict[str, Any]], bool]:
    """Run a detector over a loader of `DetectionDataset` batches.

    `note` takes the files of images that the loader left out (`data.bad_images`).

    Returns:
        This rank's results, and whether the detector finds masks.
    """
    was_training = model.training
    model.eval()
    results, with_masks = [], False
    batches = without_news(iterate(loader), note)
    for batch in tqdm(
        batches, total=len(loader), desc="evaluate", leave=False, disable=not dist.is_main()
    ):
        on_device = normalise_batch(to_device(batch, device))
        with autocast(device, amp):
            found = model(on_device["images"], on_device["image_sizes"])
        results += coco_results(
            found, batch["image_ids"], batch["image_sizes"], batch["original_sizes"], categories
        )
        with_masks |= any("masks" in each for each in found)  # even if there is no detection
    model.train(was_training)
    return results, with_masks


def score(
    annotations: Mapping[str, Any],
    results: Iterable[Mapping[str, Any]],
    with_masks: bool | None = None,
) -> Evaluation:
    """COCO's box AP, and mask AP if there are masks, of all classes together and of each.

    Args:
        annotations: a COCO JSON from `load_coco`; its crowd boxes are ignored as COCO does. Boxes
            without area or outside their image, which nothing can find, are left out as in
            training, and boxes that stick out are clipped to their image, as detections are. On
            masks see `aligndet.mask_evaluation`.
        results: COCO results entries, with the ids of `annotations`; with masks each has
            `segmentation`.
        with_masks: whether `results` have masks; None: if the first one has.

    Raises:
        ValueError: a result is for an image that `annotations` does not list, or one of several
            has no mask, or a mask of `annotations` cannot be read.
    """
    detections = list(results)
    if with_masks is None:
        with_masks = any("segmentation" in entry for entry in detections[:1])
    usable = usable_annotations(annotations)
    dataset, found = numbered(annotations, usable, detections)
    names = _class_names(read_categories(annotations))
    boxes = pycocotools_scores(dataset, found, "bbox")
    evaluation = Evaluation(
        scores=dict(zip(AP_KEYS, boxes.overall, strict=True)),
        per_class=dict(zip(names, boxes.per_class, strict=True)),
        objects=dict(zip(names, boxes.objects, strict=True)),
        detections=detections,
    )
    if not with_masks:
        return evaluation
    truth = truth_of_masks(dataset, usable, mask_sizes(annotations, detections))
    if truth is None:
        return replace(evaluation, remark=NO_MASKS)
    masks = pycocotools_scores(truth, without_boxes(found), "segm")
    return replace(
        evaluation,
        scores=evaluation.scores | dict(zip(MASK_AP_KEYS, masks.overall, strict=True)),
        segm_per_class=dict(zip(names, masks.per_class, strict=True)),
    )


def average_precision(
    annotations: Mapping[str, Any], results: Iterable[Mapping[str, Any]]
) -> dict[str, float | None]:
    """The scores of `score` alone: AP, AP50, AP75, APs, APm, APl, and with masks `segm_AP`, ..."""
    return score(annotations, results).scores


def class_table(evaluation: Evaluation) -> str:
    """AP by boxes, by masks if they are scored, and number of boxes of each class for the terminal,
    the worst class first."""
    by_masks = evaluation.segm_per_class
    scored = [(ap, name) for name, ap in evaluation.per_class.items() if ap is not None]
    rows = sorted(scored, key=lambda row: row[0])
    lines = [f"{'AP':>6}{' segm_AP' if by_masks else ''} {'boxes':>7}  class"] if rows else []
    for ap, name in rows[:TABLE_ROWS]:
        shown = printable(" ".join(name.split())[:60])  # a name may hold anything
        mask_ap = f"{_one_decimal(by_masks[name]):>8}" if by_masks else ""
        lines.append(f"{ap:6.1f}{mask_ap} {evaluation.objects[name]:7,}  {shown}")
    more = rows[TABLE_ROWS:]
    if more:
        span = f"with AP from {more[0][0]:.1f} to {more[-1][0]:.1f}"
        lines.append(f"and {count(len(more), 'class')} more, {span}")
    empty = len(evaluation.per_class) - len(rows)
    if empty:
        lines.append(f"without a box to find, and so without AP: {count(empty, 'class')}")
    return "\n".join(lines)


def _one_decimal(ap: float | None) -> str:
    return "-" if ap is None else f"{ap:.1f}"


def _class_names(categories: Categories) -> list[str]:
    """Names in the order of the ids; one that occurs twice gets its id."""
    times = Counter(categories.names)
    pairs = zip(categories.ids, categories.names, strict=True)
    return [f"{name} (id {i})" if times[name] > 1 else name for i, name in pairs]


def evaluate(
    model: nn.Module,
    loader: Loader,
    annotations: Mapping[str, Any],
    categories: Categories,
    device: torch.device,
    amp: str = "none",
    note: Note = say_nothing,
) -> Evaluation:
    """Evaluate over all ranks' shares; every rank calls it and gets the same result.

    The objects of an image that was left out count as not found; see `detect`.
    """
    dist.copy_buffers_from_main(model)  # rank 0's model is the one that is saved
    found = detect(model, loader, categories, device, amp, note)
    shares, with_masks = zip(*dist.gather_objects(found), strict=True)
    # In the order of the file's images, however they were spread over ranks and batches.
    place = {entry["id"]: number for number, entry in enumerate(annotations["images"])}
    entries = [entry for share in shares for entry in share]
    entries.sort(key=lambda entry: place[entry["image_id"]])
    if dist.is_main() and len(entries) >= MANY:
        tqdm.write(f"scoring {len(entries):,} detections", file=sys.stderr)
    # Every rank has the entries; only rank 0 scores them.
    scored = score(annotations, entries, any(with_masks)) if dist.is_main() else None
    shared = dist.broadcast_object(replace(scored, detections=[]) if scored else None)
    return replace(shared, detections=entries)
