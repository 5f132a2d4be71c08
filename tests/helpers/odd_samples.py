"""Datasets whose samples do odd things to the process that loads them; importable by workers."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import torch


class Plain:
    """Sample i is a tensor full of i."""

    def __init__(self, length=6, size=100):
        self.length, self.size = length, size

    def __len__(self):
        return self.length

    def __getitem__(self, key):
        return torch.full((self.size,), float(key.index))

    def path(self, index):
        return Path("images") / f"{index}.png"


class Raising(Plain):
    """The sample of index 2 raises an error."""

    def __init__(self, error):
        super().__init__()
        self.error = error

    def __getitem__(self, key):
        if key.index == 2:
            raise self.error
        return super().__getitem__(key)


class Signalled(Plain):
    """The sample of index 2 sends signals to its own process."""

    def __init__(self, *names):
        super().__init__()
        self.names = names

    def __getitem__(self, key):
        if key.index == 2:
            for name in self.names:
                os.kill(os.getpid(), getattr(signal, name))
        return super().__getitem__(key)


class Exiting(Plain):
    """The sample of index 2 ends its process."""

    def __getitem__(self, key):
        if key.index == 2:
            os._exit(3)
        return super().__getitem__(key)


class Unusual(Plain):
    """Samples cannot be collated."""

    def __getitem__(self, key):
        return super().__getitem__(key)[key.index :]


def stack(samples):
    return {"samples": torch.stack(samples)}
