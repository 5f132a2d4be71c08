"""Detections on images: from Python with `Predictor`; as pictures and COCO-style JSON with

`python -m aligndet.predict --weights FILE_OR_RUN --images DIR_OR_FILE --output DIR`
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from aligndet import cli, dist
from aligndet.image_inputs import ImageLike, as_image
from aligndet.mask_results import encode_masks
from aligndet.prediction_files import RESULTS, Content, check_output, list_inputs
from aligndet.transfer import read_detector
from aligndet.visual import draw_boxes
from data.counting import count
from data.drawing import picture_path, save_picture
from data.errors import DataError
from data.fonts import CaptionFont
from data.images import MAX_PIXELS
from data.json_files import write_json_atomic
from data.normalise import normalise
from data.plain_text import say
from data.transforms import pil_to_tensor, resize
from data.views import pad_images

THRESHOLD = 0.3  # lowest score of a detection that is shown
NAMED = 10  # images that were left out on the screen


class Predictor:
    """A fine-tuned detector for single images.

    Args:
        weights: a run directory of `finetune.py`, or its `weights.pt`, which holds the
            architecture, classes and input size.
        device: `auto` (a GPU where there is one), `cpu`, `cuda`, or a `torch.device`.
        max_pixels: width x height of the largest image file that is read.

    Raises:
        ValueError: the file is not a fine-tuned detector, or there is no such device.
    """

    def __init__(
        self,
        weights: str | Path,
        device: str | torch.device = "auto",
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self.device = dist.choose_device(device) if isinstance(device, str) else device
        saved = read_detector(weights)
        self.categories, self.input_sides = saved.categories, saved.input_sides
        self.trained_with = replace(saved.reading, max_pixels=max_pixels)
        self.reading = replace(self.trained_with, exif="apply")  # what people see in a photograph
        self.detector = saved.detector.to(self.device, memory_format=torch.channels_last).eval()

    @torch.no_grad()
    def __call__(self, image: ImageLike) -> dict[str, Tensor]:
        """Detect the objects in one image.

        Args:
            image: a path, a Pillow image of any mode, a uint8 array (H, W, 3) or (H, W), or
                a tensor (3, H, W) or (1, H, W), uint8 or floats in 0..1; colours are RGB. Only of
                a file is the EXIF orientation applied.

        Returns:
            `boxes` (D, 4) xyxy in pixels of the image, `scores` (D,) descending, `labels` (D,)
            int64: label `i` is `categories.names[i]`. Of a detector with masks also `masks`
            (D, S, S), probabilities inside the boxes: `models.mask_head.paste_masks` puts them
            into the image. On the CPU.

        Raises:
            ValueError: the image is none of these.
        """
        image = as_image(image, self.reading)
        small, _ = resize(image, torch.zeros(0, 4), *self.input_sides)
        images, sizes = pad_images([pil_to_tensor(small)])
        images = normalise(images.to(self.device), sizes)
        found = self.detector(images, sizes.to(self.device))[0]
        factors = torch.tensor([image.width / small.width, image.height / small.height]).repeat(2)
        found = {name: value.cpu() for name, value in found.items()}
        return {**found, "boxes": found["boxes"] * factors}

    def draw(
        self,
        image: ImageLike,
        found: dict[str, Tensor],
        threshold: float = THRESHOLD,
        font: CaptionFont | None = None,
    ) -> Image.Image:
        """A picture of the image with the detections that score at least `threshold`."""
        shown, names = above(found, threshold), self.categories.names
        return drawn(as_image(image, self.reading), shown, names, font)


def drawn(
    image: Image.Image, found: dict[str, Tensor], names: Sequence[str], font: CaptionFont | None
) -> Image.Image:
    """A picture of an image with all of the detections, whose classes have these names."""
    masks = encode_masks(found, (image.height, image.width)) if "masks" in found else None
    boxes, labels, scores = found["boxes"], found["labels"], found["scores"]
    return draw_boxes(image, boxes, labels, names, scores, font, masks)


def above(found: dict[str, Tensor], threshold: float) -> dict[str, Tensor]:
    """The detections that score at least `threshold`."""
    chosen = found["scores"] >= threshold
    return {key: value[chosen] for key, value in found.items()}


def main() -> None:
    """Parse the command line and predict."""
    parser = argparse.ArgumentParser(
        prog="python -m aligndet.predict", description="Detect objects: pictures and COCO JSON."
    )
    add = parser.add_argument
    # fmt: off
    add("--weights", required=True, metavar="FILE_OR_RUN",
        help="weights.pt of finetune.py, or the directory of its run")
    add("--images", required=True, metavar="DIR_OR_FILE", help="an image, or a folder of them")
    add("--output", required=True, metavar="DIR", help="folder for pictures and detections.json")
    add("--annotations", metavar="FILE",
        help="COCO JSON that lists the images; detections.json then has its ids")
    add("--allow-outside", action="store_true",
        help="let the JSON name images outside of DIR; as data.allow_outside")
    add("--threshold", type=_score, default=THRESHOLD, metavar="SCORE",
        help="lowest score in pictures and detections.json (%(default)s)")
    add("--json-threshold", type=_score, metavar="SCORE",
        help="lowest score in detections.json, if it is another: 0 keeps all, which AP and "
        "data.proposals --source need")
    add("--format", choices=("jpg", "png"), default="jpg", help="of the pictures (%(default)s)")
    add("--font", metavar="FILE", help="TrueType or OpenType file, if class names need one")
    add("--max-pixels", type=int, default=MAX_PIXELS, metavar="N",
        help="width x height of the largest image that is read (%(default)s)")
    add("--device", default="auto", help="auto, cpu or cuda (%(default)s)")
    # fmt: on
    args = parser.parse_args()
    with cli.one_line_errors(ValueError):
        predict(
            Predictor(args.weights, args.device, args.max_pixels),
            Path(args.images),
            Path(args.output),
            threshold=args.threshold,
            json_threshold=args.json_threshold,
            annotations=args.annotations,
            allow_outside=args.allow_outside,
            suffix=args.format,
            font=CaptionFont(args.font),
        )


def _score(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not a score in 0..1")
    return value


def predict(
    predictor: Predictor,
    images: Path,
    output: Path,
    *,
    threshold: float = THRESHOLD,
    json_threshold: float | None = None,
    annotations: str | Path | None = None,
    allow_outside: bool = False,
    suffix: str = "jpg",
    font: CaptionFont | None = None,
) -> None:
    """Write `output/NAME.SUFFIX` for each image and `output/detections.json`.

    The JSON has COCO's `images`, `annotations` (with `score`) and `categories`. Images that
    cannot be used are left out and named at the end.

    Args:
        predictor: the detector.
        images: a folder, or one file.
        output: folder; `NAME` is the image's path in its folder, with its own suffix.
        threshold: lowest score in the pictures.
        json_threshold: lowest score in the JSON; None: the same.
        annotations: COCO JSON that lists the images; its ids are used.
        allow_outside: whether it may name images outside of the folder.
        suffix: `jpg` or `png`.
        font: of the captions; Pillow's own without one.

    Raises:
        DataError: there is no image, or none can be read, or an output would lie among the inputs
            or overwrite one.
    """
    font = font or CaptionFont()
    # The boxes of a file of annotations are for pictures as they were read in training.
    reading = predictor.reading if annotations is None else predictor.trained_with
    listed = list_inputs(images, annotations, predictor.categories, reading, allow_outside)
    categories = listed.categories
    pictures = [picture_path(output, entry["file_name"], suffix) for entry in listed.entries]
    check_output(images, listed, output, pictures)
    if notice := font.notice(categories.names):
        say(notice, sys.stderr)
    numbered = zip(categories.ids, categories.names, strict=True)
    names = [font.readable(name, f"class {number}") for number, name in numbered]
    lowest = threshold if json_threshold is None else json_threshold
    content, number, best, unusable = Content(categories), 0, 0.0, []
    for entry, picture in zip(tqdm(listed.entries, desc="predict"), pictures, strict=True):
        try:
            image = listed.read(entry)
        except DataError as error:
            unusable.append(str(error))
            continue
        found = predictor(image)
        content.add(entry, image, above(found, lowest))
        shown = above(found, threshold)
        number, best = number + len(shown["scores"]), max([best, *found["scores"].tolist()])
        save_picture(drawn(image, shown, names, font), picture)
    if not content.images:
        raise DataError(unusable[0])
    write_json_atomic(content.as_dict(), output / RESULTS)
    _print_unusable(unusable)
    if not number:
        print(f"no detection scores {threshold:g} or more; the best scores {best:.2f}")
    where = f"{output}/*.{suffix}", output / RESULTS
    if lowest == threshold:
        said = f"at least {threshold:g}: {where[0]} and {where[1]}"
    else:
        said = (
            f"at least {threshold:g} in {where[0]}, "
            f"{len(content.annotations):,} of at least {lowest:g} in {where[1]}"
        )
    print(f"{count(len(content.images), 'image')}, {count(number, 'detection')} of {said}")


def _print_unusable(messages: Sequence[str]) -> None:
    for message in messages[:NAMED]:
        say(f"left out: {message}")
    if len(messages) > NAMED:
        print(f"left out: {count(len(messages) - NAMED, 'more image')}")


if __name__ == "__main__":
    main()
