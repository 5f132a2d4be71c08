"""The whole method on the built-in dataset, in minutes on a CPU: `make demo`.

Runs the same commands a user would type: boxes, image-domain pre-training of the backbone,
box-domain pre-training of neck and head, fine-tuning. Then it compares fine-tuning from the
backbone alone with fine-tuning from the whole pre-training, on the same schedule and data, in a
table and pictures.
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
from aligndet.predict import Predictor
from aligndet.visual import draw_boxes, sheet
from data.coco import CocoDataset
from data.transforms import resize

DATASET = Path("datasets/shapes")
IMAGE_STAGE = Path("runs/demo_image")  # its backbone serves all detectors
STARTS = {"backbone": "backbone only (MoCo)", "aligndet": "AlignDet"}
PICTURES = 8  # rows of the sheet
PICTURE_SIDE = 256  # pixels of a picture's short side


def main() -> None:
    """Run every step that has not been run yet, then report."""
    parser = argparse.ArgumentParser(description="AlignDet end to end on the built-in dataset.")
    parser.add_argument("--detector", choices=sorted(ADAPTERS), default="fcos")
    detector = parser.parse_args().detector
    start = time.perf_counter()
    runs = Path(f"runs/demo_{detector}")
    pretrain, finetune = (f"configs/demo_{detector}_{s}.yaml" for s in ("pretrain", "finetune"))
    make_data()
    image = "configs/demo_image.yaml"
    command("pretrain.py", "--stage", "image", "--config", image, f"output_dir={IMAGE_STAGE}")
    command("pretrain.py", "--config", pretrain, f"output_dir={runs / 'pretrain'}")
    command("finetune.py", "--config", finetune, f"output_dir={runs / 'backbone'}")
    init = str(runs / "pretrain/weights.pt")
    command("finetune.py", "--config", finetune, "--init", init, f"output_dir={runs / 'aligndet'}")
    pictures = draw(runs)
    print(f"\n{table(runs, detector)}\n\nground truth and both detectors: {pictures}")
    print(f"{(time.perf_counter() - start) / 60:.1f} minutes; runs and logs are in {runs}/")


def command(*arguments: str) -> None:
    """Run `python ARGUMENTS` and stop the demo if it fails."""
    print("\n$ python " + " ".join(arguments), flush=True)
    result = subprocess.run([sys.executable, *arguments], check=False)
    if result.returncode:
        raise SystemExit(result.returncode)


def make_data() -> None:
    """Generate the dataset and its proposals."""
    command("-m", "data.shapes", "--output", str(DATASET), "--train", "400", "--val", "100")
    proposals = DATASET / "annotations/proposals.json"
    if not proposals.exists():
        images, truth = DATASET / "images/train", DATASET / "annotations/train.json"
        command(
            "-m", "data.proposals", "--images", str(images), "--output", str(proposals),
            "--recall", str(truth),
        )  # fmt: skip


def table(runs: Path, detector: str) -> str:
    """A table of the AP of both starts."""
    keys = ("AP", "AP50", "AP75")
    lines = [f"{f'{detector}, start from':24}" + "".join(f"{key:>8}" for key in keys)]
    scores = {}
    for name, title in STARTS.items():
        scores[name] = json.loads((runs / name / "results.json").read_text())
        lines.append(f"{title:24}" + "".join(f"{scores[name][key]:8.1f}" for key in keys))
    gains = [scores["aligndet"][key] - scores["backbone"][key] for key in keys]
    return "\n".join([*lines, f"{'gain':24}" + "".join(f"{gain:+8.1f}" for gain in gains)])


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
