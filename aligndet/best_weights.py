"""The weights with the highest AP of a run, beside the last ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from aligndet import checkpoint, dist
from models.weight_errors import DamagedFile


class BestWeights:
    """Keeps the content of `weights.pt` at the evaluation with the highest AP.

    Args:
        path: where to write; a file that is there already, of a run that is resumed, counts.
        content: what to write, in the detector's current state.

    Only rank 0 reads and writes it: others may look while it removes that of an earlier run.

    Raises:
        ValueError: the file that is there is unreadable.
    """

    def __init__(self, path: Path, content: Callable[[], dict[str, Any]]) -> None:
        self.path, self.content = path, content
        resumed = dist.is_main() and path.exists()
        self.highest = ap_of(path) if resumed else -1.0

    def offer(self, ap: float | None) -> None:
        """Write the file if `ap` is the highest so far; None: there was nothing to find."""
        if dist.is_main() and ap is not None and ap > self.highest:
            self.highest = ap
            checkpoint.save({**self.content(), "AP": ap}, self.path)


def ap_of(path: Path) -> float:
    """The AP of the weights that a run has kept so far.

    Raises:
        ValueError: the file is damaged, or not one of these.
    """
    remedy = "remove it, and the run keeps the best weights from here on"
    try:
        content = checkpoint.load(path, "--checkpoint")
    except DamagedFile as error:
        raise ValueError(f"{path}: not a readable checkpoint ({error.reason}); {remedy}") from None
    if "AP" not in content:
        raise ValueError(f"{path}: does not hold the best weights of a run; {remedy}")
    return content["AP"]
