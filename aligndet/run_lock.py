"""One run at a time in a run directory.

The lock is the operating system's, so it ends with its process, however that ends. It also holds
between machines on network file systems that know locks (NFS, Lustre); where there are none, two
runs are not kept apart.
"""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

from data.atomic_files import cannot_write
from data.errors import DataError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

TAKEN = (errno.EACCES, errno.EAGAIN)


class RunLock:
    """Holds `DIRECTORY/.lock` until its process ends.

    A process's own locks never stand in its way, and forked processes do not inherit them.

    Raises:
        DataError: another process holds it; the message says which.
        StorageError: the file cannot be written.
    """

    def __init__(self, directory: Path) -> None:
        if fcntl is None:
            return
        path = directory / ".lock"
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise cannot_write(path, error) from None
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in TAKEN:
                return  # this file system knows no locks
            holder = os.read(self._file, 200).decode(errors="replace").strip()
            os.close(self._file)
            raise DataError(
                f"{directory}: another run is writing to it ({holder or 'an unknown process'}); "
                "wait for it, stop it, or choose another output_dir"
            ) from None
        try:
            os.ftruncate(self._file, 0)
            os.write(self._file, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        except OSError as error:
            raise cannot_write(path, error) from None
