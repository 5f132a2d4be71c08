"""Check image files before training starts, with one opening of each: is it whole, what size has
it, and would its values be lost?"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data.checked_files import checked_headers
from data.counting import count, more_like_it
from data.errors import DataError, raise_first
from data.image_header import Header, read_header
from data.images import AS_STORED, EXIF, UPRIGHT, BadFile, BadImage, ImageReading
from data.processes import is_quiet
from data.value_check import check_values

MADE_WITH = "images_read_with"  # key of a COCO JSON's `info`
TOGETHER = 32  # files that a thread takes at once
PATIENCE = 3  # seconds until a bar shows how many files are left


@dataclass(frozen=True)
class CheckedImages:
    """Image files that can be used."""

    sizes: tuple[tuple[int, int], ...]  # (height, width) in pixels of each, as it is read
    notes: tuple[str, ...] = ()  # sentences to say at the start
    bad: tuple[BadFile, ...] = ()  # cannot be used, to be skipped when they are read


@dataclass(frozen=True)
class StatedSizes:
    """The sizes that a file of annotations gives."""

    annotations: str | Path  # the file, for messages
    sizes: Sequence[tuple[int, int] | None]  # (height, width); `check_reading` takes None: unknown


def check_images(
    directory: str | Path,
    files: Sequence[str],
    reading: ImageReading = AS_STORED,
    stated: StatedSizes | None = None,
) -> CheckedImages:
    """Find files that are missing, empty or truncated, or that have another size than stated.

    Only the header and the end of each file are read: a JPEG or PNG that has its end marker there
    and is long enough for its picture is taken to be whole; any other file is decoded to make sure.
    Of pictures with more than 8 bits per channel a few are decoded, to see that their values are
    not lost (`data.value_check`). Damage further in shows when a file is read (`data.images`).

    Args:
        directory: of the images.
        files: relative to it.
        reading: how they will be read.
        stated: sizes that the pictures, as they are read, must have.

    Raises:
        DataError: names the first file that cannot be used, and says how many there are. If the
            reading says to skip files with unusable content: the first one that is missing, or
            nothing is left.
    """
    root, files = Path(directory), list(files)
    if not root.is_dir():
        raise DataError(f"{root}: no such directory; set data.*.images to the folder of the images")
    found = _checked(root, files, reading.max_pixels)
    bad = [result for result in found if isinstance(result, BadImage)]
    skip = reading.on_bad_image == "skip" and len(bad) < len(found)
    refused = [result for result in found if isinstance(result, DataError)]
    raise_first([r for r in refused if not (skip and isinstance(r, BadImage))])
    good = [i for i, result in enumerate(found) if isinstance(result, Header)]
    names, headers = [files[i] for i in good], [found[i] for i in good]
    if stated is not None:
        sizes = [stated.sizes[i] for i in good]
        _check_sizes(root, list(zip(names, headers, sizes, strict=True)), reading, stated)
    notes = _notes(root, names, headers, reading, stated is not None)
    if bad:
        notes.insert(0, f"{count(len(bad), 'image')} to skip, the first: {bad[0]}")
    return CheckedImages(
        tuple(_size(root, *pair, reading) for pair in zip(files, found, strict=True)),
        tuple(notes),
        tuple(error.bad_file for error in bad),
    )


def check_reading(
    directory: str | Path,
    files: Sequence[str],
    reading: ImageReading,
    stated: StatedSizes | None = None,
) -> list[str]:
    """Find out whether files should be read in another way; what is wrong with one of them alone
    is passed over.

    Returns:
        Sentences to say at the start.

    Raises:
        DataError: the pictures' EXIF orientation explains why sizes are not those stated, or their
            values would be lost (`data.value_check`).
    """
    root = Path(directory)
    found = read_headers([root / file for file in files], most=reading.max_pixels)
    usable = [i for i, result in enumerate(found) if isinstance(result, Header)]
    files, headers = [files[i] for i in usable], [found[i] for i in usable]
    if stated is not None:
        sizes = [stated.sizes[i] for i in usable]
        rows = [row for row in zip(files, headers, sizes, strict=True) if _fits_somehow(*row[1:])]
        _check_sizes(root, rows, reading, stated)
    return _notes(root, files, headers, reading, stated is not None)


def check_made_with(path: str | Path, content: Mapping[str, Any], reading: ImageReading) -> None:
    """Compare a file of proposals with the way in which its images are now read.

    Args:
        path: of the COCO JSON.
        content: of it; without `reading_entry` in its `info` it goes with any reading.
        reading: of the images.

    Raises:
        DataError: the boxes were found on pictures that were read in another way.
    """
    info = content.get("info")
    made_with = info.get(MADE_WITH) if isinstance(info, dict) else None
    if made_with is None or made_with == reading_entry(reading)[MADE_WITH]:
        return
    raise DataError(
        f"{path}: its boxes were found with {_options(made_with)}, but the images are to be read "
        f"with {_options(reading_entry(reading)[MADE_WITH])}; set data.exif and data.value_range "
        "as they were, or find the boxes again"
    )


def reading_entry(reading: ImageReading) -> dict[str, Any]:
    """What a COCO JSON's `info` says about how its images were read."""
    limits = None if reading.value_range is None else list(reading.value_range)
    return {MADE_WITH: {"exif": reading.exif, "value_range": limits}}


def _options(made_with: Any) -> str:
    if not isinstance(made_with, dict):
        return json.dumps(made_with)[:80]
    return ", ".join(f"{key} {json.dumps(value)[:40]}" for key, value in made_with.items())


def _fits_somehow(header: Header, size: tuple[int, int] | None) -> bool:
    return size in [header.size(ImageReading(exif)) for exif in EXIF]


def _check_sizes(
    root: Path,
    rows: Sequence[tuple[str, Header, tuple[float, float]]],
    reading: ImageReading,
    stated: StatedSizes,
) -> None:
    """Raise a DataError if pictures have another size than stated; if their EXIF orientation
    explains it, the message says so and names the setting."""
    wrong = [row for row in rows if row[1].size(reading) != row[2]]
    if not wrong:
        return
    name, header, size = wrong[0]
    height, width = header.size(reading)
    more = more_like_it(len(wrong) - 1)
    text = (
        f"{root / name}: has {width} x {height} pixels, but {stated.annotations} says "
        f"{size[1]} x {size[0]}{more}"
    )
    other = "stored" if reading.exif == "apply" else "apply"
    turned = ImageReading(other)
    explained = sum(header.size(turned) == size for _, header, size in wrong)
    if not explained:
        raise DataError(f"{text}; correct its entry")
    picture = "upright" if other == "apply" else "stored"
    those = f"{explained:,} of these {len(wrong):,}"
    if explained == len(wrong):
        those = "it" if explained == 1 else "all of them"
    text += (
        f"; the EXIF orientation explains {those}, the annotations are for the {picture} "
        f"picture: set data.exif={other} (for data.proposals --exif {other})"
    )
    unfit = sum(header.size(turned) != size for _, header, size in rows)
    if unfit:
        text += f", and correct the entries of what does not fit then: {count(unfit, 'file')}"
    raise DataError(text)


def _notes(
    root: Path,
    files: Sequence[str],
    headers: Sequence[Header],
    reading: ImageReading,
    have_sizes: bool,
) -> list[str]:
    """Sentences to say at the start; raises a DataError if values would be lost."""
    notes = []
    turned = [header for header in headers if header.orientation > UPRIGHT]
    if have_sizes:  # those whose stated size shows that the stored picture is meant need no word
        turned = [header for header in turned if not header.changes_size]
    if turned and reading.exif == "stored":
        doubt = "; their sizes do not show which picture their boxes are for" if have_sizes else ""
        notes.append(
            f"images with an EXIF orientation that are read as stored: {len(turned):,} "
            f"(data.exif=apply turns them{doubt})"
        )
    several = sum(header.several for header in headers)
    if several:
        notes.append(f"files with several pages or frames, the first of which is read: {several:,}")
    deep = [name for name, header in zip(files, headers, strict=True) if header.deep]
    return notes + check_values(root, deep, reading)


def _size(
    root: Path, file: str, found: Header | DataError, reading: ImageReading
) -> tuple[int, int]:
    """(height, width) of a file, as far as it is known of one that is to be skipped."""
    header = read_headers([root / file])[0] if isinstance(found, DataError) else found
    return header.size(reading) if isinstance(header, Header) else (1, 1)


def _checked(root: Path, files: Sequence[str], most: int) -> list[Header | DataError]:
    """The header of each file if it is whole, or why it cannot be used."""

    def read(some: Sequence[str]) -> list[Header | DataError]:
        return read_headers([root / file for file in some], whole=True, most=most)

    found = checked_headers(root, files, read)
    for place, header in enumerate(found):
        if isinstance(header, Header) and header.height * header.width > most:
            (found[place],) = read([files[place]])  # remembered from a run with another limit
    return found


def read_headers(
    files: Sequence[Path], whole: bool = False, most: int | None = None
) -> list[Header | DataError]:
    """The header of each file, or why it cannot be used; see `read_header`."""

    def attempt(file: Path) -> Header | DataError:
        try:
            return read_header(file, whole, most)
        except DataError as error:
            return error

    def some(start: int) -> list[Header | DataError]:
        return list(map(attempt, files[start : start + TOGETHER]))

    found: list[Header | DataError] = []
    bar = tqdm(
        total=len(files), desc="check images", leave=False, delay=PATIENCE, disable=is_quiet()
    )
    with bar, ThreadPoolExecutor(max_workers=8) as pool:
        for part in pool.map(some, range(0, len(files), TOGETHER)):
            found += part
            bar.update(len(part))
    return found
