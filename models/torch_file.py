"""Read what `torch.save` wrote, after checks that `torch.load` leaves out.

A file is a zip archive of uncompressed records: a pickle, and the numbers of each storage (before
torch 1.6: pickles one after the other, then the numbers). `torch.load` neither compares the
records with their checksums, nor what the pickle claims with the size of the file.
"""

from __future__ import annotations

import argparse
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any

import torch

from models.pickle_outline import Storage, check_memo, outline
from models.plain_pickle import NUMPY, NUMPY_DTYPES, PlainUnpickler

ZIP = b"PK\x03\x04"  # the start of an archive
OLD_TORCH = b"\x80\x02\x8a\x0al\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."  # of torch.save before 1.6
PICKLES_BEFORE = 3  # in a file of before 1.6: a number to know it by, its version, its machine
BLOCK = 1 << 20  # bytes
# Files of DINO and PixPro hold command-line options, many others NumPy's numbers.
BESIDE_TENSORS = frozenset({*NUMPY, "argparse.Namespace", "_codecs.encode"})


def read_torch(path: Path, head: bytes) -> Any:
    """The tensors, plain values, NumPy's, and command-line options of a file.

    Args:
        path: the file.
        head: its first bytes.

    Raises:
        MoreThanTensors: it holds something else.
        Exception: it is damaged.
    """
    if head.startswith(ZIP):
        check_archive(path)
    elif head.startswith(OLD_TORCH):
        check_old_file(path)
    else:
        raise ValueError("it starts like no file of weights")
    named = [(function, name) for name, function in NUMPY.items()]
    with torch.serialization.safe_globals([argparse.Namespace, *named, *NUMPY_DTYPES]):
        return torch.load(path, map_location="cpu", weights_only=True)


def check_archive(path: Path) -> None:
    """Check a zip archive: its records are whole, and hold what the pickle claims.

    Raises:
        MoreThanTensors: loading it would call something else.
        Exception: it is damaged.
    """
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
        if not any(record.CRC for record in records):
            for record in records:
                del record.CRC  # torch.serialization.set_crc32_options(False) leaves zeros
        sizes = {record.filename: record.file_size for record in records}
        if any(name.endswith("/constants.pkl") for name in sizes):
            raise ValueError("it is a TorchScript program, not a state_dict")
        check_records(records, path.stat().st_size)
        pickles = [name for name in sizes if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ValueError("it is a zip archive of something else")
        for record in records:
            check_crc(archive, record)
        storages = outline(BytesIO(archive.read(pickles[0])), BESIDE_TENSORS)
    folder = pickles[0].removesuffix("data.pkl")
    for storage in storages:
        if storage.size > sizes.get(f"{folder}data/{storage.key}", -1):
            raise ValueError(f"it claims {storage.size:,} bytes of numbers that it does not hold")


def check_records(records: list[zipfile.ZipInfo], size: int) -> None:
    """Check that records are uncompressed, have names of their own, and fit into the file."""
    if any(record.compress_type != zipfile.ZIP_STORED for record in records):
        raise ValueError("its records are compressed, which torch.save does not do")
    if len({record.filename for record in records}) < len(records):
        raise ValueError("two of its records have the same name")
    if sum(record.file_size for record in records) > size:
        raise ValueError("its records are larger than the file")


def check_crc(archive: zipfile.ZipFile, record: zipfile.ZipInfo) -> None:
    """Compare a record with its checksum, which reading it to its end does."""
    with archive.open(record) as file:
        while file.read(BLOCK):
            continue


def check_old_file(path: Path) -> None:
    """Check a file of torch before 1.6: it has the numbers that its pickle claims.

    Raises:
        MoreThanTensors: loading it would call something else.
        Exception: it is damaged.
    """
    raw = BytesIO(path.read_bytes())
    for _ in range(PICKLES_BEFORE):
        outline(raw)
    storages: dict[str, Storage] = {s.key: s for s in outline(raw, BESIDE_TENSORS)}
    start = raw.tell()
    check_memo(raw)
    raw.seek(start)
    keys = PlainUnpickler(raw).load()
    if not isinstance(keys, list) or set(keys) != set(storages):
        raise ValueError("its list of numbers is not that of its tensors")
    if sum(storage.size for storage in storages.values()) > path.stat().st_size:
        raise ValueError("it claims more numbers than it holds")
