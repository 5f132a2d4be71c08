"""Two images of different sizes in one batch, with labelled boxes and masks, to test detectors."""

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


def with_masks(
    targets: list[dict[str, torch.Tensor]], sizes: torch.Tensor = SIZES
) -> list[dict[str, torch.Tensor]]:
    """The targets of images (N, 2), each with the ellipses in its boxes as masks. Detectors without
    masks do not look at them."""
    result = []
    for goal, (height, width) in zip(targets, sizes.tolist(), strict=True):
        y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        centers = (goal["boxes"][:, :2] + goal["boxes"][:, 2:]).unflatten(1, (2, 1, 1)) / 2
        radii = (goal["boxes"][:, 2:] - goal["boxes"][:, :2]).unflatten(1, (2, 1, 1)) / 2
        distance = ((torch.stack((x, y)) + 0.5 - centers) / radii).square().sum(dim=1)  # (M, h, w)
        result.append({**goal, "masks": (distance <= 1).to(torch.uint8)})
    return result


TARGETS = with_masks(
    [
        target([[10, 12, 50, 70], [20.5, 20, 100, 120], [3, 3, 150, 60]], [0, 2, 1]),
        target([[60, 30, 90, 77.5]], [1]),
    ]
)
NOTHING = with_masks([target([], []), target([], [])])
