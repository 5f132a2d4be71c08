"""Read a file of weights in any format that can be read without running code from it.

`torch.save`, safetensors, and pickles of NumPy arrays (detectron2's model zoo).
"""

from __future__ import annotations

import argparse
import collections
import pickle
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch

from models.safetensors_file import is_safetensors, read_safetensors

# What a run directory and a folder of a model hub call the weights.
IN_FOLDERS = ("weights.pt", "model.safetensors", "pytorch_model.bin")
# The starts of files that are often saved in the place of weights, and what to do about them.
IMPOSTORS = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself; fetch it: git lfs pull"),
    (b"<!doctype html", "a web page, not weights; download the file that it links to"),
    (b"<html", "a web page, not weights; download the file that it links to"),
)
OLD_TORCH = b"\x80\x02\x8a\x0al\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."  # of torch.save before 1.6


def _numpy_functions() -> dict[str, Any]:
    """What pickles of NumPy arrays and numbers call, by its names in NumPy 1 and 2."""
    zero = np.float64(0)
    reconstruct, scalar = np.ndarray(0).__reduce__()[0], zero.__reduce__()[0]
    found = {f"numpy.{c.__name__}": c for c in (np.ndarray, np.dtype)}
    for core in ("numpy.core", "numpy._core"):
        found[f"{core}.multiarray._reconstruct"] = reconstruct
        found[f"{core}.multiarray.scalar"] = scalar
        found[f"{core}.numeric._frombuffer"] = np.zeros(1).__reduce_ex__(5)[0]
    return found


NUMPY = _numpy_functions()
NUMPY_DTYPES = [type(np.dtype(code)) for code in "?bBhHiIlLqQefd"]


def read_weights_file(path: str | PathLike[str]) -> Any:
    """What a file holds, with its tensors on the CPU; of a folder, the weights in it.

    Raises:
        ValueError: one sentence that names the file, if it is missing or cannot be read.
    """
    path = file_in(Path(path))
    try:
        with open(path, "rb") as file:
            head = file.read(64)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file of weights; give an existing one") from None
    except OSError as error:
        raise ValueError(
            f"{path}: cannot be read ({error.strerror}); make it readable, or give another file"
        ) from None
    for start, remedy in IMPOSTORS:
        if head.lstrip().lower().startswith(start):
            raise ValueError(f"{path}: is {remedy}")
    if path.suffix == ".safetensors" or is_safetensors(head):
        return read_safetensors(path)
    try:
        if head.startswith(b"\x80") and not head.startswith(OLD_TORCH):
            return read_pickle(path)
        return read_torch(path)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path}: cannot be read as weights ({type(error).__name__}); it is damaged or "
            "holds more than tensors: if you trust it, load it with weights_only=False and save "
            "its state_dict alone"
        ) from error
    except Exception as error:  # a damaged file fails in ways torch.load does not document
        raise ValueError(
            f"{path}: cannot be read as weights ({type(error).__name__}); it is damaged or of an "
            "unknown format: give a file that torch.save wrote from a state_dict, or a safetensors "
            "file"
        ) from error


def file_in(path: Path) -> Path:
    """`path`, or the file of weights in it if it is a folder."""
    if not path.is_dir():
        return path
    for name in IN_FOLDERS:
        if (path / name).is_file():
            return path / name
    raise ValueError(
        f"{path}: is a folder without {' or '.join(IN_FOLDERS)}; give the file of weights itself"
    )


def read_torch(path: Path) -> Any:
    """What `torch.save` wrote: tensors, plain values, NumPy's, and command-line options."""
    named = [(function, name) for name, function in NUMPY.items()]
    # Files of DINO and PixPro hold command-line options, many others NumPy's numbers.
    with torch.serialization.safe_globals([argparse.Namespace, *named, *NUMPY_DTYPES]):
        return torch.load(path, map_location="cpu", weights_only=True)


def read_pickle(path: Path) -> Any:
    """A pickle that holds NumPy arrays and plain values."""
    with open(path, "rb") as file:
        # Python 2 wrote the bytes of arrays as text, each byte a character.
        return PlainUnpickler(file, encoding="latin1").load()


class PlainUnpickler(pickle.Unpickler):
    """Unpickles NumPy arrays and plain values, and refuses what could run other code."""

    ALLOWED = {
        **NUMPY,
        "collections.OrderedDict": collections.OrderedDict,
        "_codecs.encode": lambda text, encoding: text.encode("latin1"),  # only ever used with it
    }

    def find_class(self, module: str, name: str) -> Any:
        """The function or class of a pickle's name, if it is harmless."""
        if f"{module}.{name}" not in self.ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} is more than tensors")
        return self.ALLOWED[f"{module}.{name}"]
