"""List the folders of a proposal cache, and remove those that no run reads any more.

    python -m data.proposals.cache_folders [DIR] [--remove-old]

Each version and each way of the search has a folder of its own in the cache. A folder is old if
this version of the project would search with other settings; without its `settings.json`, which
each run writes into the folder that it uses, it is old unless its name tells the settings.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.counting import count
from data.errors import DataError
from data.images import EXIF, ImageReading
from data.json_files import read_json
from data.plain_text import say
from data.proposals.cache import SETTINGS_FILE, named_settings, settings_digest
from data.proposals.propose import ProposalSettings

DIRECTORY = "datasets/proposal_cache"  # the default of data.proposal_cache
FOLDER = re.compile(r"[0-9a-f]{16}")
LETTERS = re.compile(r"[0-9a-f]{2}")
# What the cache writes: entries, and what a killed process left of one.
ENTRY = re.compile(r"[0-9a-f]{38}\.npy")
OTHERS = re.compile(
    rf"{re.escape(SETTINGS_FILE)}|probe\.npy"
    rf"|\.(?:[0-9a-f]{{38}}\.npy|probe\.npy|{re.escape(SETTINGS_FILE)})\.[0-9a-f]{{32}}\.tmp"
)


@dataclass(frozen=True)
class CacheFolder:
    """The boxes that were found with one kind of settings."""

    path: Path
    old: bool  # whether no run reads it any more
    what: str  # a few words about the settings
    images: int
    bytes: int
    files: tuple[Path, ...]  # all that the cache wrote


def list_folders(directory: str | Path) -> list[CacheFolder]:
    """The folders of a cache, sorted by name.

    Raises:
        DataError: there is no such directory, or a folder cannot be read.
    """
    root = Path(directory)
    if not root.is_dir():
        raise DataError(f"{root}: no such directory; give the folder of a proposal cache")
    try:
        names = sorted(path for path in root.iterdir() if FOLDER.fullmatch(path.name))
        return [_folder(path) for path in names if path.is_dir() and not path.is_symlink()]
    except OSError as error:
        raise DataError(
            f"{error.filename}: cannot be read ({error.strerror}); allow reading it"
        ) from None


def _folder(path: Path) -> CacheFolder:
    old, what = _settings(path)
    entries, others = [], []
    for file in path.rglob("*"):
        inside = LETTERS.fullmatch(file.parent.name) if file.parent != path else True
        if inside and ENTRY.fullmatch(file.name):
            entries.append(file)
        elif inside and OTHERS.fullmatch(file.name):
            others.append(file)
    size = sum(file.lstat().st_size for file in entries)
    return CacheFolder(path, old, what, len(entries), size, (*entries, *others))


def _settings(path: Path) -> tuple[bool, str]:
    """Whether a folder is old, and a few words about its settings."""
    if not (path / SETTINGS_FILE).exists():  # written by an earlier version
        for exif in EXIF:
            if path.name == settings_digest(ProposalSettings(), ImageReading(exif)):
                return False, f"in use, exif {exif}"
        return True, "old, of unknown settings"
    settings = read_json(path / SETTINGS_FILE)
    settings = settings if isinstance(settings, dict) else {}
    reading, masks = settings.pop("reading", None), settings.pop("masks", False)
    differences = _differences(settings, json.loads(json.dumps(named_settings(ProposalSettings()))))
    read = ", ".join(f"{k} {json.dumps(v)}" for k, v in (reading or {}).items()) or "exif stored"
    read += ", with masks" if masks else ""
    return bool(differences), f"old, {differences}" if differences else f"in use, {read}"


def _differences(theirs: dict[str, Any], ours: dict[str, Any]) -> str:
    return "; ".join(
        f"{key} {json.dumps(theirs.get(key))}, not {json.dumps(ours.get(key))}"
        for key in sorted(theirs.keys() | ours.keys())
        if theirs.get(key) != ours.get(key)
    )


def remove(folder: CacheFolder) -> bool:
    """Delete the files that the cache wrote; returns whether the folder went with them.

    Raises:
        DataError: a file cannot be deleted.
    """
    try:
        for file in folder.files:
            file.unlink(missing_ok=True)
        below = [path for path in folder.path.iterdir() if path.is_dir()]
        for place in (*below, folder.path):
            if not any(place.iterdir()):
                place.rmdir()
    except OSError as error:
        raise DataError(
            f"{error.filename}: cannot be deleted ({error.strerror}); allow writing there"
        ) from None
    return not folder.path.exists()


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m data.proposals.cache_folders",
        description="List the folders of a proposal cache, and remove the old ones.",
    )
    add = parser.add_argument
    add("directory", nargs="?", default=DIRECTORY, metavar="DIR", help="the cache (%(default)s)")
    add("--remove-old", action="store_true", help="delete the boxes that no run reads any more")
    options = parser.parse_args(arguments)
    try:
        folders = list_folders(options.directory)
        for folder in folders:
            size = f"{folder.bytes / 1e6:,.1f} MB"
            say(f"{folder.path}: {count(folder.images, 'image')}, {size}; {folder.what}")
        old = [folder for folder in folders if folder.old]
        if options.remove_old:
            _remove_all(old)
        elif old:
            size = f"{sum(folder.bytes for folder in old) / 1e6:,.1f} MB"
            say(f"{count(len(old), 'old folder')}, {size}: --remove-old deletes their boxes")
    except DataError as error:
        say(f"error: {error}", sys.stderr)
        return 1
    return 0


def _remove_all(folders: Sequence[CacheFolder]) -> None:
    for folder in folders:
        gone = remove(folder)
        rest = "" if gone else " (the folder stays, it holds files that are not the cache's)"
        say(f"deleted: {count(folder.images, 'image')} of {folder.path}{rest}")
    if not folders:
        say("no folder is old: nothing is deleted")


if __name__ == "__main__":
    sys.exit(main())
