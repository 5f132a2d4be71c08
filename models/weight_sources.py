"""Where weights come from: a file, a URL, or torchvision by name; downloads are kept.

Downloads are torch.hub's: its progress bar, its cache (`TORCH_HOME`, else `~/.cache/torch`) and,
for files of download.pytorch.org, its check of the hash in their names.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import re
from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from urllib.parse import unquote, urlsplit

import torch
from torchvision.models import get_model_weights

from models.checks import valid_choices

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

KEY = "model.backbone_weights"
TORCHVISION = "torchvision"
PYTORCH_HOST = "download.pytorch.org"


def local_file(source: str | PathLike[str], backbone: str) -> Path:
    """The file that a source names, downloaded if it is not there yet.

    Args:
        source: `torchvision` (its best weights of that backbone), `torchvision:NAME`
            (`IMAGENET1K_V1`, ...), an http(s) URL, or a path, which is returned as it is.
        backbone: name of the architecture, the same here and in torchvision.

    Raises:
        ValueError: one sentence, for an unknown name, or if a download fails: what could not be
            had, and where to put it by hand.
    """
    text = str(source)
    name, _, version = text.partition(":")
    if name == TORCHVISION:
        return downloaded(torchvision_url(backbone, version or "DEFAULT"), text)
    if text.startswith(("http://", "https://")):
        return downloaded(text, text)
    return Path(source)


def torchvision_url(backbone: str, version: str) -> str:
    """Where torchvision keeps its weights `version` of an architecture."""
    try:
        weights = get_model_weights(backbone)
    except ValueError:
        raise ValueError(
            f"{KEY} is {TORCHVISION}, which has no weights of {backbone}; set it to a file"
        ) from None
    if version not in weights.__members__:
        valid = [f"{TORCHVISION}:{name}" for name in weights.__members__]
        given = f"{TORCHVISION}:{version}"
        raise ValueError(
            f"{KEY} is {given!r}, which is unknown for {backbone}; {valid_choices(given, valid)}"
        )
    return weights[version].url


def downloaded(url: str, source: str) -> Path:
    """The file of a URL in the cache; it is fetched first if it is not there.

    `source` is what the user wrote, for messages.
    """
    path = cache_path(url)
    if path.exists():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with one_at_a_time(path.parent):
            if not path.exists():
                print(f"downloading {url} to {path}", flush=True)
                torch.hub.download_url_to_file(url, str(path), hash_prefix(url))
    except (OSError, http.client.HTTPException, RuntimeError) as error:  # RuntimeError: its hash
        what = source if source == url else f"{source} ({url})"
        raise ValueError(
            f"{KEY} is {what}, but {path.name} could not be downloaded ({error}); put the file at "
            f"{path}, or set {KEY}=FILE"
        ) from None
    return path


def cache_path(url: str) -> Path:
    """Where a download is kept: as torch.hub does for PyTorch's own files, whose names have a hash.

    Others have a folder for their URL, as many have the same name: `resnet50.pth` is Barlow Twins
    and VICReg, and `model.safetensors` anything.
    """
    parts = urlsplit(url)
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    if parts.hostname == PYTORCH_HOST:
        return folder / Path(parts.path).name
    place = unquote(f"{parts.netloc}{parts.path}") + (f"?{parts.query}" if parts.query else "")
    safe = (re.sub(r"[^\w.+=-]", "_", part) for part in place.split("/"))
    return folder.joinpath(*(part for part in safe if part not in ("", ".", "..")))


def hash_prefix(url: str) -> str | None:
    """The start of the SHA-256 of a file of download.pytorch.org, which is part of its name."""
    found = re.search(r"-([0-9a-f]{8,})\.\w+$", urlsplit(url).path)
    return found[1] if found and urlsplit(url).hostname == PYTORCH_HOST else None


@contextlib.contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Let one process of this machine at a time download into `folder`: the others of a torchrun
    wait, and then find the file. Where folders cannot be locked (Windows, some network drives) all
    of them download it, which does no harm."""
    if fcntl is None:
        yield
        return
    lock = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)
