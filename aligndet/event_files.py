"""`loop.tensorboard`: the numbers of metrics.jsonl as event files too."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FOLDER = "tensorboard"  # in the run directory


def check_tensorboard(wanted: bool) -> None:
    """Raise a ValueError if event files are wanted but cannot be written."""
    if wanted and importlib.util.find_spec("tensorboard") is None:
        raise ValueError(
            "loop.tensorboard is true, but the package tensorboard is not installed; install it, "
            "or set loop.tensorboard=false"
        )


class EventFiles:
    """Event files of a run; one that is resumed goes on in a file of its own.

    Args:
        run: its directory.
        step: that the run goes on from; later ones, of before it was stopped, are not shown.
    """

    def __init__(self, run: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415  needs the package

        self.writer = SummaryWriter(str(run / FOLDER), purge_step=step + 1 if step else None)

    def write(self, line: Mapping[str, Any]) -> None:
        """The numbers of a line of metrics.jsonl, at its step."""
        for key, value in line.items():
            if key != "step" and isinstance(value, (int, float)):
                self.writer.add_scalar(key, value, line["step"])
        self.writer.flush()
