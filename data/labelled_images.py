"""Labelled images on their way from a labelling tool's files to COCO JSON.

The readers (`data.voc`, `data.yolo`) give `Split`s; `to_coco` turns one into a COCO dict. What is
left out, changed or guessed on the way is collected in `Findings`, to be said to the user.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data.counting import count
from data.errors import DataError

DIFFICULT = ("crowd", "keep", "drop")
LEAST_SIDE = 0.01  # pixels; a box with a smaller side cannot be trained on
Corners = tuple[float, float, float, float]  # x1, y1, x2, y2: edges in pixels from 0, as in COCO


@dataclass(frozen=True)
class LabelledBox:
    """One object as a tool wrote it; the box may be empty or reach beyond the image."""

    name: str  # of the class
    corners: Corners
    where: str  # file, and line if that helps to find it
    difficult: bool | None = None  # None: the format has no such mark
    polygon: tuple[float, ...] | None = None  # x, y, x, y ... in pixels, if there is one


@dataclass(frozen=True)
class LabelledImage:
    """One image with its objects."""

    path: Path  # absolute
    height: int  # pixels
    width: int
    boxes: tuple[LabelledBox, ...]


class Findings:
    """What a conversion left out, changed or guessed, counted, with the first place of each.

    Args:
        strict: whether what would be left out is an error instead.
    """

    def __init__(self, strict: bool = False) -> None:
        self.strict = strict
        self._count: Counter[str] = Counter()
        self._first: dict[str, str] = {}
        self.remarks: list[str] = []  # on the source as a whole

    def left_out(self, what: str, where: object) -> None:
        """Count one thing that the result lacks.

        Raises:
            DataError: `strict` is set.
        """
        if self.strict:
            raise DataError(f"{where}: {what}; correct it, or leave it out by omitting --strict")
        self._add(f"left out: {what}", where)

    def changed(self, what: str, where: object) -> None:
        """Count one thing that the result has, but not as the files state it."""
        self._add(f"changed: {what}", where)

    def guessed(self, what: str, where: object) -> None:
        """Count one thing that the files do not state."""
        self._add(f"guessed: {what}", where)

    def note(self, what: str, where: object) -> None:
        """Count one thing that the user should know."""
        self._add(f"note: {what}", where)

    def _add(self, what: str, where: object) -> None:
        self._count[what] += 1
        self._first.setdefault(what, str(where))

    def update(self, other: Findings) -> None:
        """Add what another conversion found."""
        self._count.update(other._count)
        self._first = other._first | self._first
        self.remarks += other.remarks

    def lines(self) -> list[str]:
        """One line per kind: what, how many, and where the first is."""
        return self.remarks + [
            f"{what}: {count:,} (first: {self._first[what]})" for what, count in self._count.items()
        ]


@dataclass
class Split:
    """The images of one split, such as train."""

    name: str  # empty if the source has no splits
    images: list[LabelledImage]
    findings: Findings = field(default_factory=Findings)


@dataclass
class Labelled:
    """What a reader found in a source."""

    splits: list[Split]
    classes: tuple[str, ...]  # in the order of the ids, of all splits together
    remarks: list[str] = field(default_factory=list)  # lines about the source as a whole


def choose_classes(
    names: Iterable[str], given: Sequence[str] | None = None, usual: Sequence[str] = ()
) -> tuple[str, ...]:
    """The classes of a data set in the order of their category ids, which start at 1.

    Args:
        names: of the objects of all splits.
        given: the user's own choice, taken as it is.
        usual: taken if all names are among them.
    """
    if given is not None:
        return tuple(given)
    found = set(names)
    return tuple(usual) if found <= set(usual) else tuple(sorted(found))


def labelled_splits(splits: Sequence[Split], source: object) -> tuple[list[Split], list[str]]:
    """The splits that have images, and a remark on each of the others, such as a test set without
    labels.

    Raises:
        DataError: no split has an image.
    """
    kept = [split for split in splits if split.images]
    remarks = []
    for split in splits:
        if not split.images:
            reasons = "; ".join(split.findings.lines()) or "no label file was found"
            name = f" of {split.name}" if split.name else ""
            remarks.append(f"no labelled image{name} can be used ({reasons})")
    if not kept:
        reasons = "; ".join(remarks) or "has no labels"
        raise DataError(f"{source}: {reasons}; correct the files, or restore what is missing")
    if [split.name for split in kept] == ["other"]:
        kept[0].name = ""
    return kept, [f"left out: {remark}" for remark in remarks]


def to_coco(
    split: Split, classes: Sequence[str], base: str | Path, difficult: str = "crowd"
) -> dict[str, list[dict[str, Any]]]:
    """The COCO dict of a split; what happens to its boxes is added to its findings.

    Boxes are clipped to their image. Those that are empty, outside, or of no class in `classes`
    are left out. A name that differs from just one class in capitals only is taken for it.

    Args:
        split: its images, in the order of their ids, which start at 1.
        classes: names; category id = position + 1.
        base: folder that `file_name` is relative to.
        difficult: `crowd` marks difficult objects with `iscrowd` 1, `keep` writes them like any
            other, `drop` leaves them out.

    Raises:
        ValueError: `difficult` is none of the three, or an image is outside `base`.
    """
    require_choice_of_difficult(difficult)
    category_of = _Categories(classes)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image in split.images:
        entry = {
            "id": len(images) + 1,
            "file_name": _relative(image.path, base),
            "height": image.height,
            "width": image.width,
        }
        images.append(entry)
        for box in image.boxes:
            category = category_of.find(box, split.findings)
            bbox = _clip(box, image, split.findings)
            if category is None or bbox is None:
                continue
            if box.difficult and difficult == "drop":
                split.findings.note("difficult objects, dropped", box.where)
                continue
            mark = {} if box.difficult is None else {"difficult": int(box.difficult)}
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": entry["id"],
                    "category_id": category,
                    "bbox": bbox,
                    "area": bbox[2] * bbox[3],
                    **({} if box.polygon is None else {"segmentation": [list(box.polygon)]}),
                    **mark,
                    "iscrowd": int(bool(box.difficult) and difficult == "crowd"),
                }
            )
    categories = [{"id": number, "name": name} for number, name in enumerate(classes, start=1)]
    return {"images": images, "annotations": annotations, "categories": categories}


def require_choice_of_difficult(difficult: str) -> None:
    """Raise a ValueError if `difficult` is none of the choices."""
    if difficult not in DIFFICULT:
        raise ValueError(f"difficult is {difficult!r}; give one of {', '.join(DIFFICULT)}")


def summary(content: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Numbers of images and boxes of a COCO dict from `to_coco`."""
    images, annotations = content["images"], content["annotations"]
    labelled = {entry["image_id"] for entry in annotations}
    parts = [count(len(images), "image"), count(len(annotations), "box")]
    difficult = [entry["iscrowd"] for entry in annotations if entry.get("difficult")]
    if difficult:
        treated = "ignored" if all(difficult) else "kept"
        parts.append(f"{len(difficult):,} of them difficult and {treated}")
    if len(labelled) < len(images):
        parts.append(f"{len(images) - len(labelled):,} of the images without boxes")
    return ", ".join(parts)


class _Categories:
    """Category ids by class name."""

    def __init__(self, classes: Sequence[str]) -> None:
        self.ids = {name: number for number, name in enumerate(classes, start=1)}
        self.folded: dict[str, list[str]] = {}
        for name in classes:
            self.folded.setdefault(name.casefold(), []).append(name)

    def find(self, box: LabelledBox, findings: Findings) -> int | None:
        """The id of a box's class, or None if it has none."""
        if box.name in self.ids:
            return self.ids[box.name]
        similar = self.folded.get(box.name.casefold(), [])
        if len(similar) == 1:
            findings.changed(f"class {box.name!r} taken for {similar[0]!r}", box.where)
            return self.ids[similar[0]]
        findings.note(f"boxes of class {box.name!r}, left out by --classes", box.where)
        return None


def _clip(box: LabelledBox, image: LabelledImage, findings: Findings) -> list[float] | None:
    """The part of a box inside the image as xywh, or None if there is next to none."""
    x1, y1, x2, y2 = box.corners
    left, top = max(x1, 0), max(y1, 0)
    right, bottom = min(x2, image.width), min(y2, image.height)
    if right - left < LEAST_SIDE or bottom - top < LEAST_SIDE:
        findings.left_out("boxes without area or outside their image", box.where)
        return None
    if max(left - x1, top - y1, x2 - right, y2 - bottom) > 0.5:  # less is rounding
        findings.changed("boxes that stick out of their image, clipped", box.where)
    return [left, top, right - left, bottom - top]


def _relative(path: Path, base: str | Path) -> str:
    folder = Path(os.path.abspath(base))
    if not path.is_relative_to(folder):
        raise ValueError(f"{path}: is outside the images root {folder}; give a folder above")
    return path.relative_to(folder).as_posix()
