"""Find everything in a COCO JSON that training refuses, not only the first thing.

The dataset of training is the judge: where it refuses a file, it is built from halves of the file's
images, then from halves of the halves, until each image or annotation that it refuses is known.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from data.errors import DataError, DatasetError
from data.json_files import read_json

MOST = 100  # refusals; the search ends there
LARGEST = 5e8  # bytes of a file that is read whole: in memory it takes ten times as many
Built = TypeVar("Built")
Entry = dict[str, Any]


@dataclass(frozen=True)
class Judged(Generic[Built]):
    """What became of a file."""

    accepted: Built | None  # of what is not refused; None if nothing is left
    problems: list[str]  # one sentence each
    complete: bool = True  # whether the search came to its end


def judge(
    build: Callable[[Path], Built], build_part: Callable[[Path], Built], annotations: str | Path
) -> Judged[Built]:
    """Build a dataset from a COCO JSON, or from the part of it that is not refused.

    Args:
        build: builds the dataset from the path of a COCO JSON, and raises a DataError if it
            refuses it.
        build_part: the same, but accepts images without annotations.
        annotations: the COCO JSON.
    """
    path = Path(annotations)
    try:
        return Judged(build(path), [])
    except DataError as error:
        first = str(error)
    if path.is_file() and path.stat().st_size > LARGEST:
        return Judged(None, [f"{first}; in a file of this size nothing more is looked for"])
    try:
        content = read_json(path)
    except DataError:
        return Judged(None, [first])
    lists = (
        [content.get(k) for k in ("images", "annotations")] if isinstance(content, dict) else [0]
    )
    if not all(isinstance(entries, list) for entries in lists):
        return Judged(None, [first])
    with tempfile.TemporaryDirectory() as folder:
        trial = _Trial(build_part, path, content, Path(folder) / path.name)
        problems = trial.run()
        accepted = trial.accepted(build)
        return Judged(accepted, problems or [first], trial.complete)


class _Trial:
    """Builds datasets from parts of one file."""

    def __init__(
        self, build: Callable[[Path], object], path: Path, content: Entry, scratch: Path
    ) -> None:
        self.build, self.path, self.whole, self.scratch = build, path, content, scratch
        self.images: list[Any] = []  # that are not refused
        self.annotations: list[Any] = []
        self.complete = True
        self.of_image: dict[str, list[Any]] = {_key(image): [] for image in content["images"]}
        self.strays: list[Any] = []  # annotations of no image
        for entry in content["annotations"]:
            self.of_image.get(_key(entry, "image_id"), self.strays).append(entry)

    def run(self) -> list[str]:
        """Why images are refused, then annotations of images that are not, then strays."""
        self.images, refused = self._sift(self.whole["images"], self._images)
        self.annotations = [a for image in self.images for a in self._annotations_of(image)]
        self.complete = len(refused) < MOST
        problems = []
        for image, _ in refused:
            message = self._attempt([image], [])
            if message is not None:
                problems.append(message)
                continue
            good, bad = self._sift(
                self._annotations_of(image), lambda part, image=image: self._attempt([image], part)
            )
            problems += [message for _, message in bad]
            self.images.append(image)
            self.annotations += good
        if self.images:
            some = self.images[:1]
            good, bad = self._sift(self.strays, lambda part: self._attempt(some, part))
            problems += [message for _, message in bad]
            self.annotations += good
        return list(dict.fromkeys(problems))

    def content(self) -> Entry:
        """The COCO dict of what is not refused."""
        return self._part(self.images, self.annotations)

    def accepted(self, build: Callable[[Path], Built]) -> Built | None:
        """The dataset of what is not refused; None if there is none."""
        self._write(self.content())
        try:
            return build(self.scratch)
        except DataError:
            return None  # nothing is left, or parts that are good alone do not go together

    def _annotations_of(self, image: Any) -> list[Any]:
        return self.of_image.get(_key(image), [])

    def _images(self, part: Sequence[Any]) -> str | None:
        return self._attempt(part, [a for image in part for a in self._annotations_of(image)])

    def _attempt(self, images: Sequence[Any], annotations: Sequence[Any]) -> str | None:
        """Why a part of the file is refused; None if it is not."""
        self._write(self._part(images, annotations))
        try:
            self.build(self.scratch)
        except DatasetError:  # a part need not be usable by itself
            return None
        except DataError as error:
            return str(error).replace(str(self.scratch), str(self.path))
        return None

    def _part(self, images: Sequence[Any], annotations: Sequence[Any]) -> Entry:
        return {**self.whole, "images": list(images), "annotations": list(annotations)}

    def _write(self, content: Entry) -> None:
        self.scratch.write_text(json.dumps(content), encoding="utf-8")

    def _sift(
        self, entries: Sequence[Any], refusal: Callable[[Sequence[Any]], str | None]
    ) -> tuple[list[Any], list[tuple[Any, str]]]:
        """Part entries into those that are accepted and those that are not, with the reason."""
        accepted: list[Any] = []
        refused: list[tuple[Any, str]] = []
        pending = [list(entries)] if entries else []
        while pending and len(refused) < MOST:
            part = pending.pop()
            message = refusal(part)
            if message is None:
                accepted += part
            elif len(part) == 1:
                refused.append((part[0], message))
            else:
                middle = len(part) // 2
                pending += [part[middle:], part[:middle]]
        return accepted, refused


def _key(entry: Any, field: str = "id") -> str:
    """An id as text; 1, 1.0 and "1" are the same one."""
    value = entry.get(field) if isinstance(entry, dict) else None
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
