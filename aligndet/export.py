"""Export a detector for other programs, from pixels to final boxes:

`python -m aligndet.export RUN --format onnx|torch_export|torchscript [--output FILE]`

`docs/export.md` describes the files, and `docs/run_exported.py` runs one without this project.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aligndet import checkpoint, cli
from aligndet.config import load_config
from aligndet.export_check import Comparison, compare
from aligndet.export_formats import FORMATS, least_side, require_packages
from aligndet.transfer import SavedDetector, read_detector
from data.atomic_files import open_atomic
from data.coco_json import read_file_names
from data.counting import count
from data.errors import DataError
from data.images import read_image
from data.transforms import pil_to_tensor, resize, resized_size
from models.swin import SwinTransformer

PICTURES = 10  # of the run's validation images, at most, on which both are compared
NOISE_SHAPES = ((3, 4), (4, 3), (1, 1), (2, 3))  # height and width of images of noise instead


def main() -> None:
    """Parse the command line and export."""
    parser = argparse.ArgumentParser(
        prog="python -m aligndet.export",
        description="A fine-tuned detector for other programs, from pixels to final boxes.",
    )
    add = parser.add_argument
    add("run", metavar="RUN", help="the directory of a run of finetune.py, or its weights.pt")
    add("--format", required=True, choices=list(FORMATS), help="of the file")
    add("--output", metavar="FILE", help="where to write (detector.SUFFIX beside the weights)")
    args = parser.parse_args()
    with cli.one_line_errors(ValueError):
        print(export(args.run, args.format, args.output))


def export(run: str | Path, name: str, output: str | Path | None = None) -> str:
    """Export a detector, check the result against PyTorch, and write it.

    Args:
        run: the directory of a run of `finetune.py`, or its `weights.pt`.
        name: a key of `FORMATS`.
        output: the file; None: `detector.SUFFIX` beside the weights.

    Returns:
        What was written and how it compares, in a few lines.

    Raises:
        ValueError: the detector cannot be read or exported, a package is missing, or the exported
            detector finds something else than PyTorch; then nothing is written.
    """
    require_packages(name)
    saved = read_detector(run, "RUN")
    weights = checkpoint.file_of(run, "weights.pt", "RUN")
    path = Path(output) if output else weights.with_name(f"detector{FORMATS[name].suffix}")
    if path.resolve() == weights.resolve():
        raise ValueError(f"{path}: holds the weights themselves; give --output another name")
    if path.is_dir():
        raise ValueError(f"{path}: is a folder; give --output the name of a file")
    check_exportable(saved, run, name)
    saved.detector.eval()
    content = FORMATS[name].make(saved.detector, about(saved))
    pictures = list(islice(validation_pictures(weights.parent, saved), PICTURES))
    compared = compare(saved.detector, FORMATS[name].load(content), pictures or noise(saved))
    check_same(compared, run, name)
    with open_atomic(path, binary=True, size=len(content)) as file:
        file.write(content)
    source = "validation images" if pictures else "noise, as no validation images of the run exist"
    return f"{path}: {len(content) / 1e6:.1f} MB\non {source}: {compared.summary(name)}"


def about(saved: SavedDetector) -> dict[str, Any]:
    """What the file says of itself: all that is needed to use it."""
    short_side, max_side = saved.input_sides
    return {
        "classes": list(saved.categories.names),  # of label 0, 1, ...
        "category_ids": list(saved.categories.ids),  # theirs in the COCO JSON
        "short_side": short_side,  # px; images are resized to it, aspect kept, bilinear,
        "max_side": max_side,  # but the long side is at most this
        "images": "uint8 RGB 0..255 (N, 3, H, W), padded on the right and below",
        "image_sizes": "int64 (N, 2), height and width before padding",
        "reading": saved.reading.look(),  # how the pictures of its training were read
    }


def check_exportable(saved: SavedDetector, run: str | Path, name: str) -> None:
    """Check that a format can hold a detector.

    Raises:
        ValueError: it cannot; the message says why.
    """
    backbone = saved.detector.backbone
    if isinstance(backbone, SwinTransformer):
        raise ValueError(
            f"{run}: its backbone, {backbone.name}, shifts its windows or not by the size of the "
            "image, which no format here can hold; export a detector with another backbone"
        )
    shortest, least = min(saved.input_sides), least_side(saved.detector)
    if name == "torch_export" and shortest < least:
        raise ValueError(
            f"{run}: its images have a short side of {shortest} px, but in torch_export its "
            f"{type(saved.detector).__name__} needs at least {least}; use --format onnx or "
            "torchscript"
        )


def check_same(compared: Comparison, run: str | Path, name: str) -> None:
    """Raise a ValueError if an exported detector finds something else than the detector."""
    if not compared.same:
        raise ValueError(
            f"{run}: as {name} it finds other objects than in PyTorch "
            f"({count(compared.unmatched, 'detection')} in only one of both, {compared.matched:,} "
            "in both), so nothing was written; use another --format"
        )


def validation_pictures(folder: Path, saved: SavedDetector) -> Iterator[Tensor]:
    """The validation images of the run in a folder as the detector sees them, (3, h, w) uint8; none
    if its config or their list does not exist, and those files that cannot be read are left out."""
    try:
        val = load_config(folder / "config.yaml").data.val
        names = read_file_names(val.annotations) if val.images and val.annotations else []
    except ValueError:
        return
    for name in names:
        try:
            image = read_image(Path(val.images) / name, saved.reading)
        except DataError:
            continue
        small, _ = resize(image, torch.zeros(0, 4), *saved.input_sides)
        yield pil_to_tensor(small)


def noise(saved: SavedDetector) -> list[Tensor]:
    """A few images of noise of different shapes, (3, h, w) uint8."""
    source = torch.Generator().manual_seed(1)
    sizes = [resized_size(*shape, *saved.input_sides) for shape in NOISE_SHAPES]
    return [
        torch.randint(0, 256, (3, *size), generator=source, dtype=torch.uint8) for size in sizes
    ]


if __name__ == "__main__":
    main()
