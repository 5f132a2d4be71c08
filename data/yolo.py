"""Read YOLO folders: one text file per image (`data.yolo_txt`), class names in a `data.yaml`.

The text of `images/train/a.jpg` is `labels/train/a.txt`, or `a.txt` in the image's folder.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

from data.convert_options import ReadOptions
from data.errors import DataError, raise_first
from data.images import UPRIGHT
from data.label_files import (
    SHOWN,
    TURNED,
    FileIndex,
    choose_split,
    nearest,
    read_headers_of,
    same_split,
    split_order,
)
from data.labelled_images import (
    Findings,
    Labelled,
    LabelledBox,
    LabelledImage,
    Split,
    choose_classes,
    labelled_splits,
)
from data.walk import files_below
from data.yolo_sets import NAME_FILES, YoloSet, read_yolo_set
from data.yolo_txt import YoloBox, read_yolo_txt

IMAGE_FOLDERS = ("images", "jpegimages", "imgs")  # `labels` in their place holds the texts
NO_LABELS = (*NAME_FILES, "train.txt", "val.txt", "valid.txt", "test.txt", "notes.txt")


def read_yolo(source: Path, options: ReadOptions, classes: Sequence[str] | None = None) -> Labelled:
    """Read a YOLO data set.

    Args:
        source: absolute path of its folder or of its yaml.
        options: what to read, and how.
        classes: names in the order of the category ids; also the names of the classes 0, 1, ...
            if the data set has none. None: as in the data set.

    Raises:
        DataError: see `read_yolo_set`; a label cannot be read (the file and line are named), there
            are no class names, or no image is labelled.
    """
    found = read_yolo_set(source, options.images_root, options.allow_outside)
    names = found.names
    if names is None and classes is not None:
        names = dict(enumerate(classes))
    if names is None:
        raise DataError(
            f"{source}: has no class names; add data.yaml or classes.txt, or give --classes a,b,c"
        )
    label_of, unused, unclear = _pair(found)
    for what, texts in (("without an image", unused), ("that fit two images alike", unclear)):
        if texts:
            found.remarks.append(
                f"note: texts {what}, not taken: {len(texts):,} (first: {texts[0]})"
            )
    splits = []
    problems: list[DataError] = []
    chosen = choose_split(found.images, options.split, source)
    for name in sorted(chosen, key=split_order):
        split = Split(name, [], Findings(options.strict))
        labels = _read_labels(chosen[name], label_of, names, found.keypoints, split, problems)
        splits.append(split)
        _add_images(split, chosen[name], labels, options.keep_unlabelled)
    raise_first(problems)
    splits, left_out = labelled_splits(splits, source)
    found.remarks += left_out
    in_order = choose_classes((), classes, tuple(dict.fromkeys(names[k] for k in sorted(names))))
    if len(in_order) < len(names) and classes is None:
        found.remarks.append("note: classes with the same name are joined")
    return Labelled(splits, in_order, found.remarks)


def _read_labels(
    images: Sequence[Path],
    label_of: Mapping[Path, Path],
    names: Mapping[int, str],
    keypoints: bool,
    split: Split,
    problems: list[DataError],
) -> dict[Path, list[YoloBox]]:
    """The boxes of each image that has a text; files that cannot be read go to `problems`."""
    labels: dict[Path, list[YoloBox]] = {}
    labelled = [image for image in dict.fromkeys(images) if image in label_of]
    for image in tqdm(labelled, f"labels {split.name}".strip(), unit="file", leave=False):
        try:
            labels[image] = read_yolo_txt(label_of[image], names, keypoints, split.findings)
        except DataError as error:
            problems.append(error)
    return labels


def _add_images(
    split: Split,
    images: Sequence[Path],
    labels: Mapping[Path, list[YoloBox]],
    keep_unlabelled: bool,
) -> None:
    """Append the images of a split with their boxes in pixels."""
    headers = read_headers_of(image for image in images if image in labels or keep_unlabelled)
    for image in dict.fromkeys(images):
        header = headers.get(image)
        if image not in labels and not keep_unlabelled:
            split.findings.note("images without a text, not taken (see --keep-unlabelled)", image)
        elif header is None:
            split.findings.left_out("images that cannot be read", image)
        else:
            if header.orientation != UPRIGHT:
                split.findings.note(TURNED, image)
            size = header.size(SHOWN)
            boxes = tuple(_in_pixels(box, *size) for box in labels.get(image, ()))
            split.images.append(LabelledImage(image, *size, boxes))


def _in_pixels(box: YoloBox, height: int, width: int) -> LabelledBox:
    x1, y1, x2, y2 = box.corners
    corners = (x1 * width, y1 * height, x2 * width, y2 * height)
    polygon = None
    if box.polygon is not None:
        polygon = tuple(v * (height if n % 2 else width) for n, v in enumerate(box.polygon))
    return LabelledBox(box.name, corners, box.where, polygon=polygon)


def _pair(found: YoloSet) -> tuple[dict[Path, Path], list[Path], list[Path]]:
    """The text of each image that has one, the texts that belong to no image, and those that may
    belong to more than one.

    A text whose place does not tell its image is taken for the image of that name in the same
    split, for the nearest if there are several, and for none if two are as near.
    """
    images = list(dict.fromkeys(path for paths in found.images.values() for path in paths))
    label_of: dict[Path, Path] = {}
    for image in images:
        for path in _expected_labels(image):
            if path.is_file():
                label_of[image] = path
                break
    folders = {path.parent for path in label_of.values()}
    folders |= {found.home} if found.texts_below else set()
    texts = {text for folder in folders for text in files_below(folder, {".txt"})}
    others = sorted(_labels_among(texts - set(label_of.values())))
    index = FileIndex(others)
    named: dict[Path, list[Path]] = {}
    for image in images:
        text = None if image in label_of else index.stem(image.stem, image)
        if text is not None and same_split(image, text):
            named.setdefault(text, []).append(image)
    for text, fitting in named.items():
        image = nearest(fitting, text)
        if image is not None:
            label_of[image] = text
    unclear = [text for text, fitting in named.items() if nearest(fitting, text) is None]
    taken = {*label_of.values(), *unclear}
    return label_of, [text for text in others if text not in taken], unclear


def _expected_labels(image: Path) -> Iterator[Path]:
    """Where the text of an image usually is, the likeliest place first."""
    parts = image.with_suffix(".txt").parts
    for position in reversed(range(len(parts) - 1)):
        if parts[position].lower() in IMAGE_FOLDERS:
            yield Path(*parts[:position], "labels", *parts[position + 1 :])
    yield image.with_suffix(".txt")


def _labels_among(texts: Collection[Path]) -> Iterator[Path]:
    for text in texts:
        name = text.name.lower()
        if name not in NO_LABELS and not name.startswith("readme"):
            yield text
