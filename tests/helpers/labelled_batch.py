"""Two images of different sizes in one batch, with labelled boxes, for tests of detectors."""

from __future__ import annotations

import torch

K = 3
SIZES = torch.tensor([[128, 160], [100, 130]])


def batch() -> torch.Tensor:
    """(2, 3, 128, 160) noise; also seeds whatever the test draws next."""
    torch.manual_seed(1)
    return torch.randn(2, 3, 128, 160)


def target(boxes: list, labels: list) -> dict[str, torch.Tensor]:
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return {"boxes": boxes, "labels": torch.tensor(labels, dtype=torch.int64)}


TARGETS = [
    target([[10, 12, 50, 70], [20.5, 20, 100, 120], [3, 3, 150, 60]], [0, 2, 1]),
    target([[60, 30, 90, 77.5]], [1]),
]
NOTHING = [target([], []), target([], [])]


def with_masks(targets: list[dict[str, torch.Tensor]]) -> list[dict[str, torch.Tensor]]:
    """The targets of the batch, each with the ellipses in its boxes as masks."""
    result = []
    for goal, (height, width) in zip(targets, SIZES.tolist(), strict=True):
        y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        centers = (goal["boxes"][:, :2] + goal["boxes"][:, 2:]).unflatten(1, (2, 1, 1)) / 2
        radii = (goal["boxes"][:, 2:] - goal["boxes"][:, :2]).unflatten(1, (2, 1, 1)) / 2
        distance = ((torch.stack((x, y)) + 0.5 - centers) / radii).square().sum(dim=1)  # (M, h, w)
        result.append({**goal, "masks": (distance <= 1).to(torch.uint8)})
    return result
