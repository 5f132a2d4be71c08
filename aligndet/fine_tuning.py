"""Fine-tuning as a task of `train.fit`: a detector on labelled boxes."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from aligndet import dist


class FineTuning(nn.Module):
    """The task of `train.fit`: a detector and its own losses."""

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.detector = detector

    @property
    def num_classes(self) -> int:
        """K, without background."""
        return self.detector.num_classes

    def forward(
        self, batch: dict[str, Any], with_statistics: bool = True
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Losses of a batch from `collate_detection`; no statistics."""
        return self.detector(batch["images"], batch["image_sizes"], batch["targets"]), {}

    def update_target(self, step: int, total_steps: int) -> dict[str, float]:
        """There is no target branch in fine-tuning. BatchNorm that is trained (`model.norm=bn`) has
        the same statistics on all ranks afterwards."""
        dist.average_statistics(self)
        return {}
