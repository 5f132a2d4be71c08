"""One run at a time in a run directory, and the same directory for all its ranks.

The lock is the operating system's, so it ends with its process, however that ends. It also holds
between machines on network file systems that know locks (NFS, Lustre); where there are none, two
runs are not kept apart.
"""

from __future__ import annotations

import errno
import os
import socket
import time
from pathlib import Path

from aligndet import dist
from data.atomic_files import cannot_write
from data.errors import DataError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

NAME = ".lock"
TAKEN = (errno.EACCES, errno.EAGAIN)


class RunLock:
    """Holds `DIRECTORY/.lock`, which names its process, until that ends.

    A process's own locks never stand in its way, and forked processes do not inherit them.

    Raises:
        DataError: another process holds it; the message says which.
        StorageError: the file cannot be written.
    """

    def __init__(self, directory: Path) -> None:
        path = directory / NAME
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        self.holder = f"process {os.getpid()} on {socket.gethostname()}, since {since}"
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise cannot_write(path, error) from None
        if not _locked(self._file):
            holder = os.read(self._file, 200).decode(errors="replace").strip()
            os.close(self._file)
            raise DataError(
                f"{directory}: another run is writing to it ({holder or 'an unknown process'}); "
                "wait for it, stop it, or choose another output_dir"
            )
        try:
            os.ftruncate(self._file, 0)
            os.write(self._file, f"{self.holder}\n".encode())
            os.fsync(self._file)  # other machines read it
        except OSError as error:
            raise cannot_write(path, error) from None


def _locked(file: int) -> bool:
    """Whether no other process has locked the file; where there are no locks, none has."""
    if fcntl is None:
        return True
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in TAKEN
    return True


def machines_without(directory: Path, lock: RunLock | None) -> list[str]:
    """Names of the machines from which the lock is not seen: they have another directory of that
    name, or none.

    Args:
        directory: of the run.
        lock: rank 0's; of no meaning on the others.
    """
    holder = dist.broadcast_object(lock and lock.holder)
    same = dist.is_main() or _holder(directory) == holder  # to close the file would free the lock
    names = dist.gather_objects(None if same else socket.gethostname())
    return sorted({name for name in names if name})


def _holder(directory: Path) -> str | None:
    try:
        return (directory / NAME).read_text(errors="replace").strip()
    except OSError:
        return None
