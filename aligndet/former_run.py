"""What a finished run has written, put aside when another one starts in its directory: nobody must
take its AP for that of the new settings."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

# The results come last: they tell that there is something to put aside, also after a kill.
PATTERNS = (
    *("config.yaml", "metrics.jsonl", "manifest.json", "weights_best.pt", "report.html"),
    *("errors.jpg", "nonfinite*.pt", "tensorboard", "reconstructions", "evaluation*.json"),
    *("per_class.json", "segm_per_class.json", "detections.json", "results.json"),
)


def put_aside(folder: Path) -> None:
    """Move what a run with results wrote into `former`, `former_2` or so on inside its folder, the
    first that is not there yet. `weights.pt` stays until the new run replaces it: that one may
    start from it. `clusters.pt` stays too: it is only read for the proposals it was made of."""
    if not (folder / "results.json").exists():
        return
    names = itertools.chain(["former"], (f"former_{n}" for n in itertools.count(2)))
    former = next(place for name in names if not os.path.lexists(place := folder / name))
    former.mkdir()
    for pattern in PATTERNS:
        for path in sorted(folder.glob(pattern)):
            os.replace(path, former / path.name)
