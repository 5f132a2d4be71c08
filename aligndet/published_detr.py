"""The weights that DETR's authors published (`detr-r50`, `detr-r101`), to start fine-tuning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from models.detector import ModelConfig
from models.detr_weights import detr_from_authors

QUERIES = "query_embed.weight"
DEEP = "backbone.0.body.layer3.22.conv1.weight"  # ResNet-101 has it, ResNet-50 has not
LABELS = 91  # theirs are COCO's category ids, 0 to 90
COCO_IDS = frozenset(range(1, LABELS)) - {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}  # the 80 in use
INPUT_SIDES = [800, 1333]


def is_published_detr(content: Mapping[str, Any]) -> bool:
    """Whether a file holds DETR's weights under its authors' names."""
    return "stage" not in content and QUERIES in content["model"]


def start_file(weights: Mapping[str, Tensor], ids: tuple[int | str, ...], names: list[str]) -> dict:
    """What `aligndet.transfer.detector_file` would give for these weights.

    Args:
        weights: under the authors' names.
        ids, names: of the classes to fine-tune on. With COCO's 80 ids, the classifier's rows for
            them are kept; else its classes have names of their own, so that it is made afresh.

    Raises:
        ValueError: a weight has no counterpart.
    """
    model = detr_from_authors(weights)
    for key in [key for key in model if key.endswith("running_mean")]:
        # Their fixed BatchNorm does not count batches.
        model[key.replace("running_mean", "num_batches_tracked")] = torch.tensor(0)
    layers = {part: 1 + max(_layers(model, part)) for part in ("encoder", "decoder")}
    options = {
        "width": model["query_embedding.weight"].shape[1],
        "queries": len(model["query_embedding.weight"]),
        "feedforward": len(model["transformer.decoder.0.feedforward.0.weight"]),
        **{f"{part}_layers": number for part, number in layers.items()},
    }
    if len(ids) == len(COCO_IDS) and set(ids) == COCO_IDS:  # as in COCO's own files
        rows = [*ids, LABELS]  # background is last
        for key in ("classifier.weight", "classifier.bias"):
            model[key] = model[key][rows]
    else:
        ids, names = range(LABELS), [f"label {i} of the published DETR" for i in range(LABELS)]
    config = ModelConfig("detr", "resnet101" if DEEP in weights else "resnet50", options=options)
    return {
        "model": model,
        "stage": "detector",
        "config": asdict(config),
        "categories": {"ids": list(ids), "names": list(names)},
        "input_sides": INPUT_SIDES,
    }


def _layers(model: Mapping[str, Tensor], part: str) -> list[int]:
    return [int(key.split(".")[2]) for key in model if key.startswith(f"transformer.{part}.")]
