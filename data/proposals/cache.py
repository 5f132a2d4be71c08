"""Proposals that are found once and kept on disk, by the content of the image and the settings.

The file of an image is `DIRECTORY/SETTINGS/ab/cdef....npy`: `SETTINGS` is a digest of the
settings, `abcdef...` one of the bytes of the image file. So a renamed or copied image is found,
a changed one is searched again, and workers, ranks and runs can share a directory: the first one
writes, and two at once write the same. Each file ends in a checksum, so that a damaged one is
noticed; `SETTINGS/settings.json` says in words what the digest stands for.

Legend: P proposals.
"""

from __future__ import annotations

import functools
import hashlib
import io
import itertools
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from data.atomic_files import open_atomic, os_error_of
from data.errors import DataError, StorageError
from data.images import AS_STORED, ImageReading
from data.proposals.propose import SEARCH_VERSION, Proposals, ProposalSettings, find_proposals

SETTINGS_FILE = "settings.json"


class ProposalCache:
    """Finds the boxes of an image, unless that has been done before.

    Args:
        directory: folder of the cache; made if it is missing. It may be read-only if it holds the
            boxes of every image, see `problem`.
        settings: of the search. Different settings have different folders in `directory`.
        reading: how the images are read, which makes a difference in the same way.

    Attributes:
        problem: why nothing can be written, in a few words; None if it can.

    Raises:
        DataError: nothing can be written, and there are no boxes of these settings.
    """

    def __init__(
        self,
        directory: str | Path,
        settings: ProposalSettings,
        reading: ImageReading = AS_STORED,
    ) -> None:
        self.directory, self.settings, self.reading = Path(directory), settings, reading
        self.folder = self.directory / settings_digest(settings, reading)
        self.problem: str | None = None
        try:  # fails now, not hours later in a worker
            _write(self.folder / SETTINGS_FILE, _named_as_json(settings, reading))
        except StorageError as error:
            cause = os_error_of(error)
            if not self.folder.is_dir():
                raise self._unusable(cause) from None
            self.problem = cause.strerror

    def boxes(self, content: bytes, image: Image.Image) -> Tensor:
        """The boxes of `proposals`."""
        return self.proposals(content, image).boxes

    def proposals(self, content: bytes, image: Image.Image) -> Proposals:
        """The boxes of an image: those a file of `python -m data.proposals` would hold. If the
        settings ask for masks, these as well.

        Args:
            content: bytes of the image file.
            image: the same, decoded as RGB as `reading` says.

        Returns:
            Boxes (P, 4) float32 xyxy pixels, best first, rounded to 0.01 pixels; P may be 0.

        Raises:
            DataError: the boxes cannot be written.
        """
        found = self.kept(content, image.height, image.width)
        if found is None:  # never searched, or the file is damaged
            found = self._search(image)
            try:
                _write(self.path(content), _encode(found))
            except StorageError as error:
                raise self._unusable(os_error_of(error)) from None
        return found

    def kept(self, content: bytes, height: int, width: int) -> Proposals | None:
        """The proposals of an image if they are there and undamaged, without a search.

        Args:
            content: bytes of the image file.
            height, width: of the image as `reading` says, pixels.

        Returns:
            As from `proposals`, or None.

        Raises:
            DataError: the file of the boxes cannot be read.
        """
        kept = self._read(self.path(content))
        if kept is None:
            return None
        decode = _decode_with_masks if self.settings.masks else _decode
        return decode(kept, width, height)

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

    def _search(self, image: Image.Image) -> Proposals:
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        (found,) = find_proposals([pixels], self.settings)
        # Rounded as `python -m data.proposals` does and clipped as CocoDataset does: a number with
        # two decimals has the same float32 either way, so a run does not depend on the way.
        boxes = found.boxes.numpy().astype(np.float64).round(2)
        boxes = boxes.clip(0, (image.width, image.height) * 2).astype(np.float32)
        return found._replace(boxes=torch.from_numpy(boxes))

    def _unusable(self, error: OSError) -> DataError:
        return DataError(
            f"{self.directory}: boxes cannot be kept there ({error.strerror}); set "
            "data.proposal_cache to a folder that can be written and has space"
        )


def _write(path: Path, content: bytes) -> None:
    # Syncing would slow the search down, and a file torn by a power cut is noticed.
    with open_atomic(path, binary=True, sync=False) as file:
        file.write(content)


def settings_digest(settings: ProposalSettings, reading: ImageReading = AS_STORED) -> str:
    """16 hexadecimal digits that differ between settings, ways to read images and versions of the
    search."""
    text = json.dumps(named_settings(settings, reading), sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def named_settings(settings: ProposalSettings, reading: ImageReading = AS_STORED) -> dict[str, Any]:
    """What the boxes and masks depend on, by name, for JSON."""
    named = {"version": SEARCH_VERSION, **settings.named()}
    if reading != AS_STORED:  # left out otherwise: older caches stay valid
        named["reading"] = reading.look()
    return named


def _named_as_json(settings: ProposalSettings, reading: ImageReading) -> bytes:
    return json.dumps(named_settings(settings, reading), indent=1).encode()


LENGTH = np.dtype("<u4")  # of a mask in bytes
CHECKSUM = 4  # bytes at the end of a file: CRC-32 of all before, little-endian


def _encode(found: Proposals) -> bytes:
    """Boxes (P, 4) as the content of a .npy file, little-endian float32; with masks then their
    bytes, their lengths and P; and the checksum. `np.load` ignores all but the boxes."""
    content = _npy(found.boxes.numpy())
    if found.masks is not None:
        numbers = [*map(len, found.masks), len(found.masks)]
        content += b"".join(found.masks) + np.array(numbers, LENGTH).tobytes()
    return content + _checksum(content)


def _checksum(content: bytes) -> bytes:
    return zlib.crc32(content).to_bytes(CHECKSUM, "little")


def _npy(boxes: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, boxes.astype("<f4"))
    return file.getvalue()


HEADER = len(_npy(np.zeros((0, 4))))  # bytes before the numbers, for any P


@functools.lru_cache(maxsize=4096)
def _header(count: int) -> bytes:
    return _npy(np.zeros((count, 4)))[:HEADER]


def _decode(content: bytes, width: int, height: int) -> Proposals | None:
    """Boxes (P, 4) of a file; None if it is damaged.

    Only what `_encode` writes is accepted, and the same without a checksum, as earlier versions
    wrote it. `np.load` would accept more, takes longer, and fails in many ways on a damaged header.
    In a file without a checksum, most damage to the numbers shows as well: they are no longer a box
    in an image of this size (nor are infinite or undefined numbers).
    """
    count, rest = divmod(len(content) - HEADER, 16)
    if count < 0 or not content.startswith(_header(count)):
        return None
    if rest == CHECKSUM:
        content, stated = content[:-CHECKSUM], content[-CHECKSUM:]
        if _checksum(content) != stated:
            return None
    elif rest:
        return None
    boxes = np.frombuffer(content, dtype="<f4", offset=HEADER).reshape(count, 4).copy()
    inside = (boxes[:, :2] >= 0) & (boxes[:, :2] < boxes[:, 2:]) & (boxes[:, 2:] <= (width, height))
    return Proposals(torch.from_numpy(boxes)) if inside.all() else None


def _decode_with_masks(content: bytes, width: int, height: int) -> Proposals | None:
    """Boxes and masks of a file; None if it is damaged or holds no masks."""
    content, stated = content[:-CHECKSUM], content[-CHECKSUM:]
    if _checksum(content) != stated:
        return None
    count = int.from_bytes(content[-LENGTH.itemsize :], "little")
    letters = HEADER + 16 * count
    numbers = len(content) - LENGTH.itemsize * (count + 1)
    found = _decode(content[:letters], width, height) if letters <= numbers else None
    if found is None:
        return None
    ends = letters + np.frombuffer(content, LENGTH, count, numbers).astype(np.int64).cumsum()
    edges = [letters, *ends.tolist()]
    if edges[-1] != numbers:
        return None
    return found._replace(masks=[content[a:b] for a, b in itertools.pairwise(edges)])
