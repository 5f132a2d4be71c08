"""The product with a change to one file, imported beside the one that is there."""

from __future__ import annotations

import contextlib
import importlib.machinery
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.helpers.cuda_stand_in import PRODUCT, ROOT

MODULES = {name.removesuffix(".py") for name in PRODUCT}


class TextIsGone(AssertionError):
    """The text to replace is not in the file once, so that the change must be written anew."""


@contextlib.contextmanager
def edited_product(file: str, text: str, new: str) -> Iterator[None]:
    """While it is open, imports of the product give modules of another set, with `text` in `file`
    replaced by `new`; modules imported before stay as they are.

    Raises:
        TextIsGone: `text` is not in the file, or not once.
    """
    times = (ROOT / file).read_text(encoding="utf-8").count(text)
    if times != 1:
        raise TextIsGone(f"{file} has {text!r} {times} times, not once: plant the mistake anew")
    finder = _Finder(file, text, new)
    kept = {name: module for name, module in sys.modules.items() if _is_product(name)}
    for name in kept:
        del sys.modules[name]
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if _is_product(name)]:
            del sys.modules[name]
        sys.modules.update(kept)


def _is_product(module: str) -> bool:
    return module.split(".")[0] in MODULES


class _Finder:
    def __init__(self, file: str, text: str, new: str) -> None:
        self.path, self.text, self.new = ROOT / file, text, new
        self.module = file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")

    def find_spec(self, name, path=None, target=None):
        if name != self.module:
            return None
        loader = _Loader(name, str(self.path))
        loader.text, loader.new = self.text, self.new
        return importlib.util.spec_from_file_location(name, self.path, loader=loader)


class _Loader(importlib.machinery.SourceFileLoader):
    text: str
    new: str

    def get_code(self, fullname):
        """Compiled anew: the bytecode on the disk is of the file as it is."""
        source = Path(self.path).read_text(encoding="utf-8").replace(self.text, self.new)
        return compile(source, self.path, "exec")
