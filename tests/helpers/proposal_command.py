"""Call the command that writes proposals on small folders, and read what it leaves."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
from PIL import Image

from data.proposals.command import main
from tests.helpers.two_rectangles import draw


def three_images(images: Path) -> Path:
    """Make a folder of three small scenes, one of them in a subfolder."""
    (images / "sub").mkdir(parents=True)
    for i, name in enumerate(["a.png", "b.png", "sub/c.png"]):
        Image.fromarray(draw(i)).save(images / name)
    return images


def run(*arguments: str | Path | int) -> int:
    """Call the command; returns its exit status."""
    return main([str(argument) for argument in arguments])


def spoil(path: Path) -> None:
    """Damage a PNG in the middle; its end marker stays."""
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 50] = bytes(50)
    path.write_bytes(data)


def names(output: Path) -> list[str]:
    """File names of the images in an output."""
    return [image["file_name"] for image in json.loads(output.read_text())["images"]]


def journal_of(output: Path) -> Path:
    """Path of the journal of an output."""
    return output.with_name(f".{output.name}.partial.jsonl")


def save_all_kinds(images: Path) -> None:
    """Save images with every kind of pixels, and of extreme sizes."""
    scene = Image.fromarray(draw(3))
    scene.convert("L").save(images / "grey.png")
    scene.convert("RGBA").save(images / "rgba.png")
    wide = np.array(scene.convert("L"), dtype=np.uint16) * 257
    Image.fromarray(wide).save(images / "sixteen.png")
    Image.new("RGB", (1, 1), "red").save(images / "pixel.png")
    Image.new("RGB", (70, 50), "red").save(images / "flat.png")


def without_progress(stderr: str) -> list[str]:
    """Lines of stderr except those of the progress bar."""
    lines = re.split(r"[\r\n]+", stderr)
    return [line for line in lines if line and not line.startswith("proposals:")]
