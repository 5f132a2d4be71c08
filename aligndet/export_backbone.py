"""Export a backbone for other code: a state_dict under torchvision's names.

`python -m aligndet.export_backbone --weights FILE --output FILE.pth` takes the `weights.pt` of
any stage. The classifier of a supervised backbone is included, so that torchvision's model loads
the file as it is; other files lack only that layer (`load_state_dict(..., strict=False)`).
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from aligndet import checkpoint, cli
from aligndet.transfer import first_misfit
from models.backbone import random_backbone
from models.backbone_fit import OUTPUT_NORMS, first_problem


def torchvision_backbone(path: str | Path) -> dict[str, Tensor]:
    """The backbone of a `weights.pt` and its classifier, if any, under torchvision's names.

    Raises:
        ValueError: the file is unreadable or not a result of this project.
    """
    content = checkpoint.load(path, "--weights")
    stage, weights = content.get("stage"), content["model"]
    if stage not in ("image", "box", "detector"):
        raise ValueError(
            f"{path}: is not the result of a run (stage {stage}); give --weights a weights.pt"
        )
    if stage != "image":
        weights = without_prefix(weights, "backbone.")
    name = content["config"]["backbone"]
    with torch.device("meta"):
        ours = random_backbone(name, nn.BatchNorm2d).state_dict()
    theirs = {key: value for key, value in weights.items() if key in ours}
    if problem := first_problem(weights, ours) or first_misfit(theirs, ours):
        raise ValueError(
            f"{path}: its weights are not those of the {name} in its config ({problem}); give "
            "--weights another weights.pt"
        )
    # torchvision's classifiers have no norms there.
    return {k: v for k, v in weights.items() if not k.startswith(OUTPUT_NORMS)}


def without_prefix(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The weights whose names start with `prefix`, which is removed."""
    return {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}


def main() -> None:
    """Parse the command line, convert, write."""
    parser = argparse.ArgumentParser(description="A backbone under torchvision's names.")
    parser.add_argument("--weights", required=True, metavar="FILE", help="weights.pt of a run")
    parser.add_argument("--output", required=True, metavar="FILE", help="where to write")
    args = parser.parse_args()
    with cli.one_line_errors(ValueError, OSError):
        if Path(args.output).resolve() == Path(args.weights).resolve():
            raise ValueError(f"{args.output}: is --weights itself; give --output another name")
        weights = torchvision_backbone(args.weights)
        checkpoint.save_state_dict(weights, args.output)
    classifier = any(name.startswith(("fc.", "classifier.", "head.")) for name in weights)
    what = "the whole classifier" if classifier else "a backbone without the classification layer"
    print(f"{what}, {len(weights)} tensors under torchvision's names: {args.output}")


if __name__ == "__main__":
    main()
