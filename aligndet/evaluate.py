"""Average precision with pycocotools, images spread over all ranks."""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from aligndet import dist
from aligndet.amp import autocast
from data.coco import Categories
from data.loaders import iterate, to_device
from models.checks import require_range

AP_KEYS = ("AP", "AP50", "AP75", "APs", "APm", "APl")


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


def coco_results(
    detections: Sequence[Mapping[str, Tensor]],
    image_ids: Sequence[int],
    image_sizes: Tensor,
    original_sizes: Sequence[tuple[int, int]],
    categories: Categories,
) -> list[dict[str, Any]]:
    """Detections of a batch as entries of a COCO results file, in pixels of the original images.

    Args:
        detections: for each image a dict of boxes (D, 4) xyxy, scores (D,), labels (D,).
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
        x1, y1, x2, y2 = (found["boxes"].cpu() * scale).double().unbind(dim=1)
        boxes = torch.stack([x1, y1, x2 - x1, y2 - y1], dim=1).tolist()
        scores, labels = found["scores"].tolist(), found["labels"].tolist()
        results += [
            {"image_id": image_id, "category_id": categories.ids[k], "bbox": b, "score": s}
            for b, s, k in zip(boxes, scores, labels, strict=True)
        ]
    return results


@torch.no_grad()
def detect(
    model: nn.Module,
    loader: DataLoader[Any],
    categories: Categories,
    device: torch.device,
    amp: str = "none",
) -> list[dict[str, Any]]:
    """Run a detector over a loader of `DetectionDataset` batches; returns this rank's results."""
    was_training = model.training
    model.eval()
    results = []
    for batch in tqdm(
        iterate(loader), total=len(loader), desc="evaluate", leave=False, disable=not dist.is_main()
    ):
        on_device = to_device(batch, device)
        with autocast(device, amp):
            found = model(on_device["images"], on_device["image_sizes"])
        results += coco_results(
            found, batch["image_ids"], batch["image_sizes"], batch["original_sizes"], categories
        )
    model.train(was_training)
    return results


def average_precision(
    annotations: Mapping[str, Any], results: Iterable[Mapping[str, Any]]
) -> dict[str, float | None]:
    """COCO's box AP in percent.

    Args:
        annotations: a loaded COCO JSON; its crowd boxes are ignored as COCO does.
        results: COCO results entries.

    Returns:
        AP, AP50, AP75, APs, APm, APl; None where there is no object to find.
    """
    results = [dict(entry) for entry in results]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = _complete(annotations)
        truth.createIndex()
        found = truth.loadRes(results) if results else _none_found(truth)
        scorer = COCOeval(truth, found, "bbox")
        scorer.evaluate()
        scorer.accumulate()
        scorer.summarize()
    scores = [float(value) for value in scorer.stats[:6]]
    return {
        key: 100.0 * value if value >= 0 else None
        for key, value in zip(AP_KEYS, scores, strict=True)
    }


def _none_found(truth: COCO) -> COCO:
    """An empty result, which `COCO.loadRes` cannot make."""
    found = COCO()
    found.dataset = {**truth.dataset, "annotations": []}
    found.createIndex()
    return found


def _complete(annotations: Mapping[str, Any]) -> dict[str, Any]:
    """Fill in what pycocotools needs but files may lack; ids from 1, since it reads 0 as none."""
    content = copy.copy(dict(annotations))
    content["annotations"] = [
        {
            "iscrowd": 0,
            "area": entry["bbox"][2] * entry["bbox"][3],
            **{key: value for key, value in entry.items() if key != "segmentation"},
            "id": number,
        }
        for number, entry in enumerate(annotations["annotations"], start=1)
    ]
    content.setdefault("info", {})
    return content


def evaluate(
    model: nn.Module,
    loader: DataLoader[Any],
    annotations: Mapping[str, Any],
    categories: Categories,
    device: torch.device,
    amp: str = "none",
) -> dict[str, float | None]:
    """AP over all ranks' shares; every rank calls it and gets the same result."""
    dist.copy_buffers_from_main(model)  # rank 0's model is the one that is saved
    shares = dist.gather_objects(detect(model, loader, categories, device, amp))
    scores = None
    if dist.is_main():
        scores = average_precision(annotations, [entry for share in shares for entry in share])
    return dist.broadcast_object(scores)
