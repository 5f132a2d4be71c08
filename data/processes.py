"""Which of several processes shows bars and lines: torchrun says so in the environment."""

from __future__ import annotations

import os


def is_quiet() -> bool:
    """Whether another process of this machine shows what this one would."""
    return os.environ.get("LOCAL_RANK", "0") != "0"
