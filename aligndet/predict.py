"""Detections on images: drawn, and as COCO-style JSON.

`python -m aligndet.predict --weights FILE --images DIR_OR_FILE --output DIR`
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from aligndet import cli, dist
from aligndet.evaluate import coco_results
from aligndet.transfer import read_detector
from aligndet.visual import draw_boxes
from data.errors import DataError
from data.images import ImageReading, list_images, read_image
from data.json_files import write_json_atomic
from data.transforms import resize, to_tensor
from data.views import pad_images


class Predictor:
    """A fine-tuned detector that takes Pillow images.

    Args:
        weights: `weights.pt` of `finetune.py`; holds the architecture, classes and input size.
        device: where to run.

    Raises:
        ValueError: the file is not a fine-tuned detector.
    """

    def __init__(self, weights: str | Path, device: torch.device) -> None:
        detector, self.categories, self.input_sides = read_detector(weights)
        self.detector, self.device = detector.to(device).eval(), device

    @torch.no_grad()
    def __call__(self, image: Image.Image) -> dict[str, Tensor]:
        """`boxes` (D, 4) xyxy in pixels of `image`, `scores` (D,) descending, `labels`."""
        small, _ = resize(image, torch.zeros(0, 4), *self.input_sides)
        images, sizes = pad_images([to_tensor(small)])
        found = self.detector(images.to(self.device), sizes.to(self.device))[0]
        factors = torch.tensor([image.width / small.width, image.height / small.height]).repeat(2)
        found = {name: value.cpu() for name, value in found.items()}
        return {**found, "boxes": found["boxes"] * factors}

    def draw(self, image: Image.Image, found: dict[str, Tensor], threshold: float) -> Image.Image:
        """`image` with the detections that score at least `threshold`."""
        shown = found["scores"] >= threshold
        boxes, labels, scores = (found[key][shown] for key in ("boxes", "labels", "scores"))
        return draw_boxes(image, boxes, labels, self.categories.names, scores)


def main() -> None:
    """Parse the command line and predict."""
    parser = argparse.ArgumentParser(description="Detect objects: pictures and COCO JSON.")
    parser.add_argument("--weights", required=True, help="weights.pt of finetune.py")
    parser.add_argument("--images", required=True, help="an image, or a folder of them")
    parser.add_argument("--output", required=True, help="folder for pictures and detections.json")
    parser.add_argument("--threshold", type=float, default=0.3, help="lowest score to draw")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    args = parser.parse_args()
    with cli.one_line_errors(ValueError), dist.process_group(args.device) as device:
        predictor = Predictor(args.weights, device)
        predict(predictor, Path(args.images), Path(args.output), args.threshold)


def predict(predictor: Predictor, images: Path, output: Path, threshold: float) -> None:
    """Write `output/NAME.png` for each image and `output/detections.json`.

    The JSON has COCO's `images`, `annotations` (with `score`) and `categories`. Images that
    cannot be read are left out and named at the end.

    Raises:
        DataError: there is no image, or none can be read.
    """
    root, names = (images.parent, [images.name]) if images.is_file() else (images, None)
    categories = predictor.categories
    content: dict[str, list[Any]] = {"images": [], "annotations": []}
    unreadable = []
    for image_id, name in enumerate(tqdm(names or list_images(images), desc="predict"), start=1):
        try:
            image = read_image(root / name, ImageReading(exif="apply"))
        except DataError as error:
            unreadable.append(str(error))
            continue
        found = predictor(image)
        content["images"].append(
            {"id": image_id, "file_name": name, "width": image.width, "height": image.height}
        )
        size = (image.height, image.width)
        for entry in coco_results([found], [image_id], torch.tensor([size]), [size], categories):
            area = entry["bbox"][2] * entry["bbox"][3]
            number = len(content["annotations"]) + 1
            content["annotations"].append({**entry, "id": number, "area": area, "iscrowd": 0})
        picture = output / f"{name}.png"
        picture.parent.mkdir(parents=True, exist_ok=True)
        predictor.draw(image, found, threshold).save(picture)
    if not content["images"]:
        raise DataError(unreadable[0])
    content["categories"] = [
        {"id": i, "name": name} for i, name in zip(categories.ids, categories.names, strict=True)
    ]
    write_json_atomic(content, output / "detections.json")
    count = f"{len(content['annotations'])} detections on {len(content['images'])} images"
    print(f"{count}: {output / 'detections.json'}")
    for message in unreadable:
        print(f"left out: {message}")


if __name__ == "__main__":
    main()
