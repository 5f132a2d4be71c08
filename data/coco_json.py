"""Read COCO JSON as labelling tools write it, and bring it into one form.

What a reader of the content may rely on afterwards:

- ids of images and categories are ints or text, each once, and annotations hold these very ids;
- `width` and `height` are ints above 0, or None where the file does not tell them;
- `bbox` is four finite numbers; where there is none it is taken from the polygon, and without a
  polygon it is `[0, 0, 0, 0]`;
- `iscrowd` is 0 or 1, `area` a finite float above 0 (the box's where the file has none; 0 for a box
  without area), the ids of annotations are ints, each once.

Everything else stays as it is in the file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data.coco_ids import Id, ListedIds, canonical_id
from data.coco_values import (
    AREA_LIMIT,
    box_around,
    read_flag,
    read_number,
    read_size,
    read_text,
    shorten,
    show,
)
from data.errors import DataError
from data.json_files import read_json

Entry = dict[str, Any]
CROWD = ("ignore", "keep")


def load_coco(path: str | Path, crowd: str = "ignore") -> dict[str, Any]:
    """Read a COCO JSON of labels, check it and bring it into the form above.

    Args:
        path: the file.
        crowd: `ignore` leaves boxes with `iscrowd` or `ignore` 1 marked as crowds, `keep` makes
            ordinary boxes of them.

    Returns:
        The file's dict; `images`, `annotations` (may be empty) and `categories` are lists of dicts.

    Raises:
        DataError: the file is missing, not JSON, not COCO, lacks a field, repeats an id, or an
            annotation refers to an image or a category that is not listed, or has a value that
            cannot be read.
    """
    return read_coco(path, crowd)[0]


def read_coco(path: str | Path, crowd: str = "ignore") -> tuple[dict[str, Any], Counter[str]]:
    """`load_coco`, and how often it corrected something: see `clean_coco`."""
    content = read_json(path)
    return content, clean_coco(path, content, crowd)


def read_image_list(path: str | Path) -> list[Entry]:
    """The `images` of a COCO JSON, brought into the form above; it needs no labels, as in COCO's
    own lists of unlabelled images (`image_info_unlabeled2017.json`).

    Raises:
        DataError: see `load_coco`.
    """
    content = read_json(path)
    check_list(path, content, "images")
    return _clean_images(path, content["images"], Counter())


def read_file_names(path: str | Path) -> list[str]:
    """`file_name` of each of the `images` of a COCO JSON, which need nothing else.

    Raises:
        DataError: the file is missing, not JSON, not COCO, or an image has no name.
    """
    content = read_json(path)
    check_list(path, content, "images")
    return [_file_name(path, entry) for entry in content["images"]]


def clean_coco(path: str | Path, content: Any, crowd: str = "ignore") -> Counter[str]:
    """Bring the content of a COCO JSON, read from `path`, into the form above, in place.

    Returns:
        How often something was corrected: `areas` (taken from the box), `polygons` (boxes taken
        from them), `kept_crowds`, `repeated_entries` (of images and categories), `annotation_ids`.

    Raises:
        DataError: see `load_coco`.
        ValueError: `crowd` is neither of the two.
    """
    require_crowd(crowd)
    for key in ("images", "annotations", "categories"):
        check_list(path, content, key)
    mended: Counter[str] = Counter()
    content["images"] = _clean_images(path, content["images"], mended)
    content["categories"] = clean_categories(path, content["categories"], mended)
    images = ListedIds(entry["id"] for entry in content["images"])
    categories = ListedIds(entry["id"] for entry in content["categories"])
    for entry in content["annotations"]:
        clean_annotation(path, entry, mended)
        for field, listed in (("image_id", images), ("category_id", categories)):
            found = listed.find(entry[field])
            if found is None:
                raise unlisted(path, entry, field)
            entry[field] = found
        if crowd == "keep":
            mended["kept_crowds"] += entry["iscrowd"]
            entry["iscrowd"] = 0
    _number_annotations(content["annotations"], mended)
    return mended


def require_crowd(crowd: str) -> None:
    """Raise a ValueError if `crowd` is neither of the two."""
    if crowd not in CROWD:
        raise ValueError(f"crowd is {crowd!r}; set it to {' or '.join(CROWD)}")


def check_list(path: str | Path, content: Any, key: str) -> None:
    """Raise a DataError if the content of a JSON is no object with such a list."""
    if not isinstance(content, dict):
        raise DataError(
            f"{path}: not a COCO JSON, its top level is not an object{_foreign(content)}; "
            "convert it first"
        )
    if not isinstance(content.get(key), list):
        fields = shorten(", ".join(map(repr, content)) or "nothing")
        raise DataError(
            f"{path}: not a COCO JSON, it has no list '{key}' (it has {fields})"
            f"{_foreign(content)}; convert it first"
        )


FOREIGN = {  # a field of the object, or of the first one inside it, that tells what it is
    "shapes": "a labelme file of one image",
    "_via_img_metadata": "a project of the VGG Image Annotator",
    "regions": "a file of the VGG Image Annotator",
    "score": "COCO results, which lack the images and classes",
    "bbox": "a list of annotations, which lacks the images and classes",
    "completions": "Label Studio's own JSON, which also exports COCO",
    "data": "Label Studio's own JSON, which also exports COCO",
}


def _foreign(content: Any) -> str:
    """What a JSON that is no COCO looks like, as a part of a sentence."""
    inside = list(content.values()) if isinstance(content, dict) else content
    objects = [content, *(inside[:1] if isinstance(inside, list) else [])]
    fields = {field for entry in objects if isinstance(entry, dict) for field in entry}
    kind = next((FOREIGN[field] for field in FOREIGN if field in fields), None)
    return f"; it looks like {kind}" if kind else ""


def _clean_images(path: str | Path, entries: list[Any], mended: Counter[str]) -> list[Entry]:
    for entry in entries:
        clean = clean_image(path, entry)
        entry.update(clean)
    return without_repeats(path, entries, "images", "file_name", mended)


def clean_image(path: str | Path, entry: Any) -> Entry:
    """The fields of an image that are read, in the form above.

    Raises:
        DataError: see `load_coco`.
    """
    _require(path, entry, "images", "id", canonical_id, "an integer or text")
    name = _file_name(path, entry)
    size = [read_size(entry.get(field)) for field in ("width", "height")]
    width, height = size if None not in size else (None, None)
    return {"id": entry["id"], "file_name": name, "width": width, "height": height}


def _file_name(path: str | Path, entry: Any) -> str:
    if isinstance(entry, dict) and "file_name" not in entry and "coco_url" in entry:
        return str(entry["coco_url"])  # LVIS
    _require(path, entry, "images", "file_name", read_text, "text")
    return entry["file_name"]


def clean_categories(path: str | Path, entries: list[Any], mended: Counter[str]) -> list[Entry]:
    """The categories in the form above, corrected in place.

    Raises:
        DataError: see `load_coco`.
    """
    for entry in entries:
        _require(path, entry, "categories", "id", canonical_id, "an integer or text")
        _require(path, entry, "categories", "name", _category_name, "text")
    return without_repeats(path, entries, "categories", "name", mended)


def _category_name(value: Any) -> str | None:
    """Tables give numbers for names that look like one."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return str(value) if is_number else read_text(value)


def _require(
    path: str | Path, entry: Any, key: str, field: str, read: Callable[[Any], Any], kind: str
) -> None:
    """Replace a field by what `read` makes of it, which is None for a value it cannot read."""
    if not isinstance(entry, dict) or field not in entry:
        raise DataError(f"{path}: an entry of '{key}' has no '{field}' ({show(entry)}); add it")
    value = read(entry[field])
    if value is None:
        raise DataError(
            f"{path}: an entry of '{key}' has '{field}' {show(entry[field])}, which is not "
            f"{kind}; correct it"
        )
    entry[field] = value


def without_repeats(
    path: str | Path, entries: list[Entry], key: str, field: str, mended: Counter[str]
) -> list[Entry]:
    """The entries with each id once; an entry may be repeated, but not with another `field`."""
    first: dict[Id, Entry] = {}
    for entry in entries:
        other = first.setdefault(entry["id"], entry)
        if other[field] != entry[field]:
            raise DataError(
                f"{path}: an id occurs twice in '{key}', {show(entry['id'])} for "
                f"{show(other[field])} and {show(entry[field])}; make the ids unique"
            )
    mended["repeated_entries"] += len(entries) - len(first)
    return list(first.values())


def clean_annotation(path: str | Path, entry: Any, mended: Counter[str]) -> None:
    """Bring an annotation into the form above, in place, but for what needs the rest of the file:
    whether the ids it refers to are listed, and its own.

    Raises:
        DataError: see `load_coco`.
    """
    for field in ("image_id", "category_id"):
        _require(path, entry, "annotations", field, canonical_id, "an integer or text")
    entry["bbox"] = _bbox(path, entry, mended)
    entry["iscrowd"] = max(_flag(path, entry, "iscrowd"), _flag(path, entry, "ignore"))
    area = read_number(entry.get("area"), AREA_LIMIT)
    if area is None or area <= 0:
        area = max(entry["bbox"][2], 0) * max(entry["bbox"][3], 0)
        mended["areas"] += 1
    entry["area"] = float(area)


def unlisted(path: str | Path, entry: Entry, field: str) -> DataError:
    """The error to raise for an annotation whose image or category is not listed."""
    key, one = {"image_id": ("images", "image"), "category_id": ("categories", "category")}[field]
    return DataError(
        f"{path}: {name_of(entry)} has {field} {show(entry[field])}, which is not in '{key}'; add "
        f"the {one} or remove the annotation"
    )


def _bbox(path: str | Path, entry: Entry, mended: Counter[str]) -> list[float]:
    given = entry.get("bbox")
    if given is None or given in ("", []):
        given = [0, 0, 0, 0]
    box = [read_number(value) for value in given] if isinstance(given, list) else []
    if len(box) != 4 or None in box:
        raise DataError(
            f"{path}: {name_of(entry)} has bbox {show(given)}, which is not four finite numbers "
            "[x, y, width, height]; correct it or remove the annotation"
        )
    around = None if any(box) else box_around(entry.get("segmentation"))
    mended["polygons"] += around is not None
    return around or box


def _flag(path: str | Path, entry: Entry, field: str) -> int:
    flag = read_flag(entry.get(field))
    if flag is None:
        raise DataError(
            f"{path}: {name_of(entry)} has {field} {show(entry[field])}, which is not 0 or 1; "
            "correct it"
        )
    return flag


def _number_annotations(entries: list[Entry], mended: Counter[str]) -> None:
    """Number the annotations from 1 unless each has a whole number of its own."""
    ids = [canonical_id(entry.get("id")) for entry in entries]
    if any(not isinstance(value, int) for value in ids) or len(set(ids)) < len(ids):
        ids = list(range(1, len(ids) + 1))
        mended["annotation_ids"] += len(ids)
    for entry, number in zip(entries, ids, strict=True):
        entry["id"] = number


def name_of(annotation: Entry) -> str:
    """How messages name an annotation."""
    return f"annotation {show(annotation['id']) if 'id' in annotation else '(without id)'}"
