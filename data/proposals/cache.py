"""Boxes that are found once and kept on disk, by the content of the image and the settings.

The file of an image is `DIRECTORY/SETTINGS/ab/cdef....npy`: `SETTINGS` is a digest of the
settings, `abcdef...` one of the bytes of the image file. So a renamed or copied image is found,
a changed one is searched again, and workers, ranks and runs can share a directory: the first one
writes, and two at once write the same.

Legend: P proposals.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from data.atomic_files import open_atomic, os_error_of
from data.errors import DataError, StorageError
from data.images import AS_STORED, ImageReading
from data.proposals.propose import SEARCH_VERSION, ProposalSettings, propose


class ProposalCache:
    """Finds the boxes of an image, unless that has been done before.

    Args:
        directory: folder of the cache; made if it is missing.
        settings: of the search. Different settings have different folders in `directory`.
        reading: how the images are read, which makes a difference in the same way.

    Raises:
        DataError: files cannot be written there.
    """

    def __init__(
        self,
        directory: str | Path,
        settings: ProposalSettings,
        reading: ImageReading = AS_STORED,
    ) -> None:
        self.directory, self.settings, self.reading = Path(directory), settings, reading
        self.folder = self.directory / settings_digest(settings, reading)
        probe = self.folder / "probe.npy"  # fails now, not hours later in a worker
        self._write(probe, np.zeros((0, 4)))
        probe.unlink(missing_ok=True)  # another rank may have removed it

    def boxes(self, content: bytes, image: Image.Image) -> Tensor:
        """The boxes of an image: those a file of `python -m data.proposals` would hold.

        Args:
            content: bytes of the image file.
            image: the same, decoded as RGB as `reading` says.

        Returns:
            (P, 4) float32 xyxy pixels, best first, rounded to 0.01 pixels; P may be 0.

        Raises:
            DataError: the boxes cannot be written.
        """
        path = self.path(content)
        kept = self._read(path)
        boxes = None if kept is None else _decode(kept, image.width, image.height)
        if boxes is None:  # never searched, or the file is damaged
            boxes = self._search(image)
            self._write(path, boxes)
        return torch.from_numpy(boxes)

    def path(self, content: bytes) -> Path:
        """Where the boxes of an image file with these bytes are kept."""
        digest = hashlib.blake2b(content, digest_size=20).hexdigest()
        return self.folder / digest[:2] / f"{digest[2:]}.npy"

    def _read(self, path: Path) -> bytes | None:
        try:
            return path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._unusable(error) from None

    def _search(self, image: Image.Image) -> np.ndarray:
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        boxes = propose([pixels], self.settings)[0].numpy()
        # Rounded as `python -m data.proposals` does and clipped as CocoDataset does: a number with
        # two decimals has the same float32 either way, so a run does not depend on the way.
        boxes = boxes.astype(np.float64).round(2)
        return boxes.clip(0, (image.width, image.height) * 2).astype(np.float32)

    def _write(self, path: Path, boxes: np.ndarray) -> None:
        try:
            # Syncing would slow the search down, and a file torn by a power cut is noticed.
            with open_atomic(path, binary=True, sync=False) as file:
                file.write(_encode(boxes))
        except StorageError as error:
            raise self._unusable(os_error_of(error)) from None

    def _unusable(self, error: OSError) -> DataError:
        return DataError(
            f"{self.directory}: boxes cannot be kept there ({error.strerror}); set "
            "data.proposal_cache to a folder that can be written and has space"
        )


def settings_digest(settings: ProposalSettings, reading: ImageReading = AS_STORED) -> str:
    """16 hexadecimal digits that differ between settings, ways to read images and versions of the
    search."""
    named = {"version": SEARCH_VERSION, **dataclasses.asdict(settings)}
    if reading != AS_STORED:  # left out otherwise: older caches stay valid
        named["reading"] = reading.look()
    text = json.dumps(named, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _encode(boxes: np.ndarray) -> bytes:
    """Boxes (P, 4) as the content of a .npy file, little-endian float32."""
    file = io.BytesIO()
    np.save(file, boxes.astype("<f4"))
    return file.getvalue()


HEADER = len(_encode(np.zeros((0, 4))))  # bytes before the numbers, for any P


@functools.lru_cache(maxsize=4096)
def _header(count: int) -> bytes:
    return _encode(np.zeros((count, 4)))[:HEADER]


def _decode(content: bytes, width: int, height: int) -> np.ndarray | None:
    """Boxes (P, 4) of a .npy file; None if it is damaged.

    Only what `_encode` writes is accepted. `np.load` would accept more, takes longer, and fails in
    many ways on a damaged header. Nearly all damage to the numbers themselves shows as well: they
    are no longer a box in an image of this size (nor are infinite or undefined numbers).
    """
    count, rest = divmod(len(content) - HEADER, 16)
    if count < 0 or rest or not content.startswith(_header(count)):
        return None
    boxes = np.frombuffer(content, dtype="<f4", offset=HEADER).reshape(count, 4).copy()
    inside = (boxes[:, :2] >= 0) & (boxes[:, :2] < boxes[:, 2:]) & (boxes[:, 2:] <= (width, height))
    return boxes if inside.all() else None
