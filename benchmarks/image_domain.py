"""See what image-domain pre-training learnt: k-NN and linear-probe accuracy of a run of
`pretrain.py --stage image` against pixels and untrained backbones, and its curves as a picture.

    pip install -r benchmarks/requirements.txt
    python benchmarks/image_domain.py --run runs/cifar10_r18_moco_v2 --picture curves.png

The images are those of the run's probe. Pixels are compared at several sizes, unchanged and with
the mean image subtracted; untrained backbones are of several kinds.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
import torch
from PIL import Image
from torch import nn

from aligndet.config import Config, load_config
from aligndet.image_domain import build_trained_backbone
from aligndet.probe import Features, ProbeData, knn_accuracy, probe
from data.crops import CentreCrop
from data.image_folder import ImageFiles
from data.images import read_image
from data.normalise import normalise
from models.backbone import build_backbone
from models.backbone_base import StagedBackbone

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402  (the backend without a window is chosen first)

CPU = torch.device("cpu")
PIXEL_SIDES = (8, 16, 32)
SEEDS = (0, 1, 2)


def main() -> None:
    """Parse the command line, measure, print, draw."""
    parser = argparse.ArgumentParser(description="Compare an image-stage run with baselines.")
    parser.add_argument("--run", required=True, metavar="DIR", help="its output_dir")
    parser.add_argument("--picture", metavar="FILE", help="where to draw its curves")
    args = parser.parse_args()
    run = Path(args.run)
    config = load_config(run / "config.yaml")
    if config.image.probe_train is None or config.image.probe_val is None:
        parser.error(f"{run}: the run has no probe; set image.probe_train and image.probe_val")
    data = ProbeData.read(config.image.probe_train, config.image.probe_val)
    pixels = {f"pixels, {name}": score for name, score in pixel_knn(data).items()}
    for name, score in pixels.items():
        print(f"{name:60} k-NN {score:5.1f} %")
    untrained = {}
    for name, build in UNTRAINED.items():
        scores = [untrained_scores(build, config, data, seed) for seed in SEEDS]
        untrained[name] = {key: mean([s[key] for s in scores]) for key in ("knn", "linear")}
        spread = max(s["knn"] for s in scores) - min(s["knn"] for s in scores)
        print_scores(f"{name} ({len(SEEDS)} seeds, range {spread:.1f})", untrained[name])
    print_scores("the run", json.loads((run / "results.json").read_text()))
    if args.picture:
        best = max(untrained.values(), key=lambda scores: scores["knn"])
        draw(run, max(pixels.values()), best, args.picture)
        print(f"curves: {args.picture}")


def mean(values: list[float]) -> float:
    """The arithmetic mean."""
    return sum(values) / len(values)


def print_scores(name: str, scores: dict[str, float]) -> None:
    """Print a line of the table."""
    print(f"{name:60} k-NN {scores['knn']:5.1f} %  linear {scores['linear']:5.1f} %")


def pixel_knn(data: ProbeData) -> dict[str, float]:
    """k-NN accuracy of pixels at several sizes, plain and centred."""
    scores = {}
    for side in PIXEL_SIDES:
        train, val = pixels_of(data.train, side), pixels_of(data.val, side)
        scores[f"{side} px"] = knn_accuracy(train, val)
        average = train.values.mean(dim=0)
        centred = (Features(part.values - average, part.labels) for part in (train, val))
        scores[f"{side} px, centred"] = knn_accuracy(*centred)
    return scores


def pixels_of(images: ImageFiles, side: int) -> Features:
    """Images as vectors of side x side x 3 values."""
    vectors = []
    for file in images.files:
        image = read_image(images.root / file).resize((side, side), Image.Resampling.BILINEAR)
        vectors.append(torch.from_numpy(np.asarray(image, dtype=np.float32).flatten()))
    return Features(torch.stack(vectors), torch.tensor(images.labels))


def detectors_start(config: Config, data: ProbeData) -> StagedBackbone:
    """The backbone of a detector without weights: every block adds to its shortcut."""
    return build_backbone(config.model.backbone)


def runs_start(config: Config, data: ProbeData) -> StagedBackbone:
    """The backbone that the run starts with: residual blocks equal their shortcuts."""
    return build_trained_backbone(config.model.backbone, norm_groups=1)


@torch.no_grad()
def runs_start_measured(config: Config, data: ProbeData) -> StagedBackbone:
    """The same, with BatchNorm statistics measured on about 512 training images."""
    backbone, images = runs_start(config, data), data.train
    view = CentreCrop(config.image.crop_size)
    chosen = images.files[:: max(1, len(images) // 512)]
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    views = torch.stack([view(read_image(images.root / file)) for file in chosen])
    backbone.train()(normalise(views))
    return backbone


UNTRAINED = {
    "untrained, as detectors start": detectors_start,
    "untrained, as the run starts": runs_start,
    "untrained, with measured statistics": runs_start_measured,
}


def untrained_scores(
    build: Callable[[Config, ProbeData], StagedBackbone], config: Config, data: ProbeData, seed: int
) -> dict[str, float]:
    """Scores of a random backbone."""
    torch.manual_seed(seed)
    backbone = build(config, data)
    settings = (config.image.crop_size, config.data.batch_size, config.data.workers, CPU)
    return probe(backbone, data, *settings)


def draw(run: Path, pixels: float, untrained: dict[str, float], path: str) -> None:
    """Loss, retrieval and both accuracies over the epochs, with the best baselines as lines."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    scores = [line for line in lines if "knn" in line]
    scores.append({"epoch": steps[-1]["epoch"], **json.loads((run / "results.json").read_text())})
    epochs = [line["epoch"] for line in steps]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4))
    left.plot(epochs, [line["loss"] for line in steps], color="tab:blue")
    left.yaxis.label.set_color("tab:blue")
    left.set(
        xlabel="epoch", ylabel="loss", title="Loss, and how often the right key is the nearest"
    )
    if "retrieval" in steps[0]:
        twin = left.twinx()
        twin.plot(epochs, [line["retrieval"] for line in steps], color="tab:orange", alpha=0.7)
        twin.set(ylabel="retrieval", ylim=(0, 1))
        twin.yaxis.label.set_color("tab:orange")
    for key, colour, name in (("knn", "tab:blue", "k-NN"), ("linear", "tab:green", "linear probe")):
        points = [line[key] for line in scores]
        right.plot([line["epoch"] for line in scores], points, "o-", color=colour, label=name)
        label = f"{name}, untrained backbone"
        right.axhline(untrained[key], color=colour, linestyle=":", label=label)
    right.axhline(pixels, color="black", linestyle="--", label="k-NN, pixels (best variant)")
    right.set(xlabel="epoch", ylabel="accuracy in %", title="Accuracy on held-out images")
    right.set_ylim(bottom=0)
    right.legend(loc="lower right")
    figure.tight_layout()
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    main()
