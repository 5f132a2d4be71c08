"""How pip installs this project: in place (`pip install -e .`), and in no other way.

An ordinary installation would put packages called `models`, `losses` and `data` where all other
projects of the environment find them. Everything else is setuptools'.
"""

from __future__ import annotations

import base64
import hashlib
import typing
import zipfile
from pathlib import Path

from setuptools import build_meta
from setuptools.build_meta import (
    build_sdist,
    get_requires_for_build_editable,
    get_requires_for_build_sdist,
    prepare_metadata_for_build_editable,
)

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]

# Python runs this line when it starts; the clone may be gone by then. The file is not imported:
# that would import its package, which ends the program if others are in the way.
START = (
    "import os; os.path.exists({path!r}) and "
    "exec(open({path!r}, encoding='utf-8').read(), {{'__file__': {path!r}, '__name__': ''}})\n"
)


def build_wheel(*arguments: object, **options: object) -> typing.NoReturn:
    """End with one sentence: that is what pip shows."""
    raise SystemExit(
        "error: AlignDet is not copied into an environment, where its packages models, losses and "
        "data would be in the way of others of these names; clone it, and run pip install -e . in "
        "the clone, or the scripts from its folder"
    )


# Pip asks for these first, before it downloads what the project needs.
get_requires_for_build_wheel = prepare_metadata_for_build_wheel = build_wheel


def build_editable(
    wheel_directory: str,
    config_settings: dict[str, typing.Any] | None = None,
    metadata_directory: str | None = None,
) -> str:
    """A wheel that puts this folder on the path, and runs `aligndet/shadowed.py` at the start."""
    name = build_meta.build_editable(wheel_directory, config_settings, metadata_directory)
    line = START.format(path=str(Path("aligndet/shadowed.py").resolve()))
    add_file(Path(wheel_directory, name), "aligndet_shadowed.pth", line.encode())
    return name


def add_file(wheel: Path, name: str, content: bytes) -> None:
    """Add a file to a wheel, and to its list of files, which is its last one."""
    with zipfile.ZipFile(wheel) as archive:
        files = [(entry, archive.read(entry)) for entry in archive.namelist()]
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
    line = f"{name},sha256={digest},{len(content)}\n".encode()
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
        for entry, data in files:
            archive.writestr(entry, line + data if entry.endswith(".dist-info/RECORD") else data)
