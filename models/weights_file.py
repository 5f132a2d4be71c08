"""Read a file of weights in any format that can be read without running code from it.

`torch.save`, safetensors, and pickles of NumPy arrays (detectron2's model zoo). All that this
project reads of weights, its own files too, comes through `read_weights_file`.
"""

from __future__ import annotations

import os
import stat
from os import PathLike
from pathlib import Path
from typing import Any

from models.checksum import check_checksum
from models.plain_content import check_plain
from models.plain_pickle import read_pickle
from models.safetensors_file import is_safetensors, read_safetensors
from models.torch_file import OLD_TORCH, read_torch
from models.weight_errors import DamagedFile, MoreThanTensors

# What a run directory and a folder of a model hub call the weights.
IN_FOLDERS = ("weights.pt", "model.safetensors", "pytorch_model.bin")
# The starts of files that are often saved in the place of weights, and what to do about them.
IMPOSTORS = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself; fetch it: git lfs pull"),
    (b"<!doctype html", "a web page, not weights; download the file that it links to"),
    (b"<html", "a web page, not weights; download the file that it links to"),
)
REMEDY = "give a file that torch.save wrote from a state_dict, or a safetensors file"


def read_weights_file(path: str | PathLike[str], remedy: str = REMEDY) -> Any:
    """What a file holds: plain values, containers, arrays, and dense tensors on the CPU; of a
    folder, the weights in it.

    Args:
        path: the file or folder.
        remedy: what to give instead, for messages.

    Raises:
        DamagedFile: the file is damaged or of an unknown format.
        ValueError: it is missing, cannot be opened, or holds more than tensors. Both are one
            sentence that names the file.
    """
    path = file_in(Path(path))
    head = first_bytes(path)
    for start, what in IMPOSTORS:
        if head.lstrip().lower().startswith(start):
            raise ValueError(f"{path}: is {what}")
    try:
        content = read(path, head)
        check_plain(content, path.stat().st_size)
        check_checksum(content)
    except MoreThanTensors as error:
        raise ValueError(
            f"{path}: holds more than tensors: if you trust it, load it with weights_only=False "
            f"and save its state_dict alone (loading it would call {error}); or {remedy}"
        ) from None
    except DamagedFile:
        raise
    except Exception as error:  # a damaged file fails in ways torch.load does not document
        if isinstance(error, MemoryError) or "allocate memory" in str(error):
            raise ValueError(f"{path}: does not fit into the memory; {remedy}") from None
        reason = in_words(error)
        raise DamagedFile(
            f"{path}: cannot be read as weights ({reason}); it is damaged or of an unknown format: "
            f"{remedy}",
            reason,
        ) from error
    return content


def first_bytes(path: Path) -> bytes:
    """The start of a file.

    Raises:
        ValueError: it is missing, cannot be read, or is no file.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for ever
            raise ValueError(f"{path}: is not a regular file; give a file of weights")
        with open(path, "rb") as file:
            return file.read(64)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file of weights; give an existing one") from None
    except OSError as error:
        raise ValueError(
            f"{path}: cannot be read ({error.strerror}); make it readable, or give another file"
        ) from None


def read(path: Path, head: bytes) -> Any:
    """What a file that starts with `head` holds, by its format."""
    if path.suffix == ".safetensors" or is_safetensors(head):
        return read_safetensors(path)
    if head.startswith(b"\x80") and not head.startswith(OLD_TORCH):
        return read_pickle(path)
    return read_torch(path, head)


def in_words(error: Exception) -> str:
    """An error as a few words on one line."""
    kind, text = type(error).__name__, " ".join(str(error).split())
    if not isinstance(error, ValueError):
        text = f"{kind}: {text}" if text else kind
    return text[:160]


def file_in(path: Path) -> Path:
    """`path`, or the file of weights in it if it is a folder."""
    if not os.path.isdir(path):
        return path
    for name in IN_FOLDERS:
        if (path / name).is_file():
            return path / name
    raise ValueError(
        f"{path}: is a folder without {' or '.join(IN_FOLDERS)}; give the file of weights itself"
    )
