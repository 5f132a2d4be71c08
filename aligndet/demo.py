"""The whole method on the built-in dataset, in minutes on a CPU: `make demo`.

    python -m aligndet.demo [--detector fcos] [--seed 0]

Runs the same commands a user would type: boxes, image-domain pre-training of the backbone,
box-domain pre-training of the detector, fine-tuning. Then it compares fine-tuning from the
backbone alone with fine-tuning from the whole pre-training, with the same recipe, steps and
pictures, in a table and pictures.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import torch

from aligndet.adapters import ADAPTERS
from aligndet.config import load_config
from aligndet.predict import Predictor
from aligndet.visual import draw_boxes, sheet
from data.coco import CocoDataset
from data.transforms import resize

DATASET = Path("datasets/shapes")
SINGLE_SHAPES = Path("datasets/single_shapes")  # of other kinds, for the backbone
STARTS = {"backbone": "backbone only", "aligndet": "AlignDet"}
PICTURES = 8  # rows of the sheet
PICTURE_SIDE = 256  # pixels of a picture's short side


def main() -> None:
    """Run every step that has not been run yet, then report."""
    parser = argparse.ArgumentParser(description="AlignDet end to end on the built-in dataset.")
    parser.add_argument("--detector", choices=sorted(ADAPTERS), default="fcos")
    parser.add_argument("--seed", type=int, default=0, help="of all training; same pictures (0)")
    options = parser.parse_args()
    start = time.perf_counter()
    make_data()
    runs = train(options.detector, options.seed)
    pictures = draw(runs)
    print(f"\n{table(runs, options.detector)}\n\n{facts(runs)}")
    print(f"ground truth and both detectors: {pictures}")
    command(
        *("-m", "aligndet.report", str(runs / "backbone"), str(runs / "aligndet")),
        *("--pretrain", str(runs / "pretrain"), "--output", str(runs / "report.html")),
    )
    print(f"{(time.perf_counter() - start) / 60:.1f} minutes; runs and logs are in {runs}/")


def train(detector: str, seed: int) -> Path:
    """Pre-train, and fine-tune from both starts; returns the folder of the runs."""
    suffix = f"_seed{seed}" if seed else ""
    runs, image = Path(f"runs/demo_{detector}{suffix}"), Path(f"runs/demo_image{suffix}")
    backbone = f"model.backbone_weights={image / 'weights.pt'}"  # serves all detectors

    def stage(script: str, config: str, output: Path, *arguments: str) -> None:
        config = f"configs/demo_{config}.yaml"
        command(script, "--config", config, *arguments, f"output_dir={output}", f"seed={seed}")

    stage("pretrain.py", "image", image, "--stage", "image")
    stage("pretrain.py", f"{detector}_pretrain", runs / "pretrain", backbone)
    finetune, init = f"{detector}_finetune", str(runs / "pretrain/weights.pt")
    stage("finetune.py", finetune, runs / "backbone", backbone)
    stage("finetune.py", finetune, runs / "aligndet", backbone, "--init", init)
    return runs


def command(*arguments: str) -> None:
    """Run `python ARGUMENTS` and stop the demo if it fails."""
    print("\n$ python " + " ".join(arguments), flush=True)
    result = subprocess.run([sys.executable, *arguments], check=False)
    if result.returncode:
        raise SystemExit(result.returncode)


def make_data() -> None:
    """Generate both datasets, and proposals for the one with boxes."""
    command("-m", "data.single_shapes", "--output", str(SINGLE_SHAPES), "--count", "1000")
    size = ("--train", "400", "--val", "200", "--size", "128")
    command("-m", "data.shapes", "--output", str(DATASET), *size)
    truth = DATASET / "annotations/train.json"
    command("-m", "data.subset", "--annotations", str(truth), "--percent", "25", "--fold", "0")
    proposals = DATASET / "annotations/proposals.json"
    if not proposals.exists():
        images = DATASET / "images/train"
        # Small pictures with few objects: short search, and no boxes of half a picture.
        limits = ("--search", "fast", "--filter", "ratio2size0105", "--min-side", "80")
        command(
            "-m", "data.proposals", "--images", str(images), "--output", str(proposals), *limits,
            "--masks", "--recall", str(truth),
        )  # fmt: skip


def table(runs: Path, detector: str) -> str:
    """A table of the AP of both starts, of boxes and, where there are some, of masks."""
    scores = {name: json.loads((runs / name / "results.json").read_text()) for name in STARTS}
    keys = [key for key in ("AP", "AP50", "AP75", "segm_AP") if key in scores["aligndet"]]
    lines = [f"{f'{detector}, start from':24}" + "".join(f"{key:>9}" for key in keys)]
    for name, title in STARTS.items():
        lines.append(f"{title:24}" + "".join(f"{scores[name][key]:9.1f}" for key in keys))
    gains = [scores["aligndet"][key] - scores["backbone"][key] for key in keys]
    return "\n".join([*lines, f"{'gain':24}" + "".join(f"{gain:+9.1f}" for gain in gains)])


def facts(runs: Path) -> str:
    """What both starts saw before their scores: pictures, labels, steps, seconds."""
    finetune = load_config(runs / "aligndet/config.yaml")
    image = Path(finetune.model.backbone_weights).parent
    named = len(list(SINGLE_SHAPES.glob("*/*.jpg")))
    labelled = len(json.loads(Path(finetune.data.train.annotations).read_text())["images"])
    unlabelled = len(list(Path(finetune.data.train.images).glob("*.jpg")))
    return (
        f"both starts: {length(image)} for the backbone, which names other shapes in {named:,} "
        f"pictures;\n  then {length(runs / 'aligndet')} of fine-tuning, all layers, on {labelled} "
        f"labelled pictures\nAlignDet, between the two: {length(runs / 'pretrain')} for the other "
        f"layers, on {unlabelled} pictures, no labels"
    )


def length(run: Path) -> str:
    """Steps, pictures per step and seconds of a run, in words."""
    config = load_config(run / "config.yaml")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    batch, done, seconds = config.data.batch_size, 0, 0.0
    for line in lines:
        if "images_per_second" in line:
            seconds += (line["step"] - done) * batch / line["images_per_second"]
            done = line["step"]
    return f"{done} steps of {batch} pictures ({seconds:.0f} s)"


def draw(runs: Path) -> Path:
    """Draw validation images with the ground truth and the best detections of both starts."""
    coco = CocoDataset(DATASET / "images/val", DATASET / "annotations/val.json")
    chosen = range(0, len(coco), max(1, len(coco) // PICTURES))[:PICTURES]
    device = torch.device("cpu")
    predictors = [Predictor(runs / name / "weights.pt", device) for name in STARTS]
    rows = []
    for index in chosen:
        image, record = coco.read(index)
        # Enlarge first, or captions would cover the small objects.
        image, boxes = resize(image, record.boxes, PICTURE_SIDE, 2 * PICTURE_SIDE)
        row = [draw_boxes(image, boxes, record.labels, coco.categories.names)]
        for predictor in predictors:
            found = predictor(image)
            # As many as there are objects: after minutes of training, scores are not calibrated.
            best = found["scores"][: len(boxes)]
            row.append(predictor.draw(image, found, float(best.min()) if len(best) else 1.0))
        rows.append(row)
    path = runs / "detections.png"
    sheet(rows, ["ground truth", *STARTS.values()]).save(path)
    return path


if __name__ == "__main__":
    main()
