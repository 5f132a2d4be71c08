"""How pip installs this project: in place (`pip install -e .`), and in no other way.

An ordinary installation would put packages called `models`, `losses` and `data` where all other
projects of the environment find them. Everything else is setuptools'.
"""

from __future__ import annotations

import typing

from setuptools.build_meta import (
    build_editable,
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


def build_wheel(*arguments: object, **options: object) -> typing.NoReturn:
    """End with one sentence: that is what pip shows."""
    raise SystemExit(
        "error: AlignDet is not copied into an environment, where its packages models, losses and "
        "data would be in the way of others of these names; clone it, and run pip install -e . in "
        "the clone, or the scripts from its folder"
    )


# Pip asks for these first, before it downloads what the project needs.
get_requires_for_build_wheel = prepare_metadata_for_build_wheel = build_wheel
