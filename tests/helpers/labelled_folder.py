"""Small labelled folders as labelling tools write them."""

from __future__ import annotations

from pathlib import Path

from PIL import Image


def write_image(path, width=20, height=10, orientation=None):
    """A grey image; `orientation` is EXIF's."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    Image.new("RGB", (width, height), (128, 128, 128)).save(path, exif=exif)


def write_text(path, text):
    """A text, in folders that are made."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text, encoding="utf-8")


def voc_xml(boxes=(("dog", 1, 1, 10, 5),), file_name="a.jpg", width=20, height=10, more=""):
    """A VOC annotation; each box is a class, xmin, ymin, xmax, ymax."""
    objects = "".join(
        f"<object><name>{name}</name><bndbox><xmin>{x1!r}</xmin><ymin>{y1!r}</ymin>"
        f"<xmax>{x2!r}</xmax><ymax>{y2!r}</ymax></bndbox></object>"
        for name, x1, y1, x2, y2 in boxes
    )
    size = f"<size><width>{width}</width><height>{height}</height></size>" if width else ""
    return f"<annotation><filename>{file_name}</filename>{more}{size}{objects}</annotation>"
