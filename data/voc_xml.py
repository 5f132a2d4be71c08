"""One Pascal VOC XML, as any tool writes it.

The corners stay as the file states them: whether they count from 0 or from 1 can only be told from
all files together (`data.voc`).
"""

from __future__ import annotations

import codecs
import math
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

from data.errors import DataError
from data.label_files import BYTE_ORDER_MARKS, decode
from data.regular_file import require_regular

DECLARATION = re.compile(rb"""^\s*<\?xml[^>]*?encoding\s*=\s*["']([^"']+)["']""")
SUPERSETS = {  # what files that declare the first are often written in
    "gb2312": "gb18030", "gbk": "gb18030", "shift_jis": "cp932", "euc_kr": "cp949",
    "big5": "big5hkscs",
}  # fmt: skip
YES, NO = ("1", "true", "yes"), ("0", "false", "no", "unspecified", "")


@dataclass(frozen=True)
class VocObject:
    """One `<object>`."""

    name: str
    corners: tuple[float, float, float, float] | None  # xmin, ymin, xmax, ymax; None: no numbers
    difficult: bool | None  # None: neither yes nor no
    from_polygon: bool = False  # or from a turned box
    swapped: bool = False  # xmin was above xmax, or ymin above ymax


@dataclass(frozen=True)
class VocFile:
    """One XML."""

    path: Path
    file_names: tuple[str, ...]  # what it calls its image: `<filename>`, then `<path>`
    size: tuple[int, int] | None  # height, width; None: not stated, or not whole and above 0
    objects: tuple[VocObject, ...]


def read_voc_xml(path: Path) -> VocFile | None:
    """Read an XML file; None if it holds something else than a VOC `<annotation>`.

    Raises:
        DataError: the file is missing, in an unknown encoding, or not XML.
    """
    require_regular(path)
    try:
        root = ElementTree.fromstring(_decode(path, path.read_bytes()))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; restore it or unlist the image") from None
    except (ElementTree.ParseError, OSError) as error:
        raise DataError(f"{path}: not readable as XML ({error}); write it again") from None
    if root.tag != "annotation":
        return None
    names = ((root.findtext(tag) or "").strip() for tag in ("filename", "path"))
    return VocFile(
        path,
        tuple(name for name in names if name),
        _size(root),
        tuple(_object(element) for element in root.findall("object")),
    )


def _decode(path: Path, content: bytes) -> str:
    """The text of an XML; expat itself knows only a few encodings."""
    declared = DECLARATION.match(content)
    marked = any(content.startswith(mark) for mark, _ in BYTE_ORDER_MARKS)
    name = declared[1].decode("ascii", "replace") if declared and not marked else "utf-8"
    try:
        codec = codecs.lookup(name).name.replace("-", "_")
        if codec.startswith(("utf_16", "utf_32")):  # not so, since the declaration was readable
            codec = "utf_8"
        "".encode(codec)  # a LookupError for codecs that do not make text, such as hex
    except LookupError:
        raise DataError(
            f"{path}: declares the encoding {name!r}, which Python does not know; save the file as "
            'UTF-8 and write encoding="UTF-8" in its first line'
        ) from None
    for encoding in dict.fromkeys((codec, "utf_8", SUPERSETS.get(codec, codec))):
        try:
            utf8 = encoding.startswith("utf_8")
            text = decode(content) if utf8 else content.decode(encoding)
            return text.lstrip()
        except UnicodeError:
            continue
    raise DataError(
        f"{path}: is not in the encoding {name!r} that its first line declares (UTF-8 if none); "
        "correct the line"
    )


def _size(root: ElementTree.Element) -> tuple[int, int] | None:
    sides = [_number(root.findtext(f"size/{key}")) for key in ("height", "width")]
    if any(side is None or not 1 <= side < 1e9 or side % 1 for side in sides):
        return None
    return int(sides[0]), int(sides[1])


def _object(element: ElementTree.Element) -> VocObject:
    tags = ("xmin", "ymin", "xmax", "ymax")
    stated = [_number(element.findtext(f"bndbox/{tag}")) for tag in tags]
    outline = None if None not in stated else _outline(element)
    xs, ys = ([stated[0], stated[2]], [stated[1], stated[3]]) if outline is None else outline
    known = None not in (*xs, *ys) and bool(xs) and bool(ys)
    return VocObject(
        name=(element.findtext("name") or "").strip(),
        corners=(min(xs), min(ys), max(xs), max(ys)) if known else None,
        difficult=_yes_or_no(element.findtext("difficult")),
        from_polygon=outline is not None,
        swapped=known and outline is None and (xs[0] > xs[1] or ys[0] > ys[1]),
    )


def _outline(element: ElementTree.Element) -> tuple[list[float | None], list[float | None]] | None:
    """All x and all y of a `<polygon>`, or of the corners of a turned box (roLabelImg)."""
    polygon = element.find("polygon")
    if polygon is not None:
        tags = [(child.tag.lower(), _number(child.text)) for child in polygon.iter()]
        xs, ys = ([value for tag, value in tags if tag.startswith(axis)] for axis in "xy")
        return (xs, ys) if xs and ys else None
    turned = [_number(element.findtext(f"robndbox/{tag}")) for tag in ("cx", "cy", "w", "h")]
    angle = _number(element.findtext("robndbox/angle"))
    if None in turned or angle is None:
        return None
    cx, cy, w, h = turned
    cos, sin = abs(math.cos(angle)), abs(math.sin(angle))
    half_w, half_h = (w * cos + h * sin) / 2, (w * sin + h * cos) / 2
    return [cx - half_w, cx + half_w], [cy - half_h, cy + half_h]


def _number(text: str | None) -> float | None:
    """The finite number in a text; VOC 2012 has a few with decimals."""
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _yes_or_no(text: str | None) -> bool | None:
    word = (text or "").strip().lower()
    return True if word in YES else False if word in NO else None
