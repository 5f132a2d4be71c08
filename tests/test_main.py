"""`python -m aligndet`, which lists the commands."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from aligndet.__main__ import GROUPS

ROOT = Path(__file__).parent.parent
# They are run under another name, or are the list itself.
ALIASES = {"aligndet.cluster_command", "data.proposals.__main__", "aligndet.__main__"}


def listed():
    return {name for group in GROUPS.values() for name in group}


def test_it_prints_every_command_with_a_line():
    printed = subprocess.run(
        [sys.executable, "-m", "aligndet"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    lines = [line.replace(".py ", " ").split() for line in printed.splitlines()]
    for name in listed():
        (line,) = (words for words in lines if name in words[:3])
        assert len(line) > 4  # the command, and what it does
    assert all(len(line) <= 100 for line in printed.splitlines())


def test_no_command_is_forgotten():
    found = set()
    for folder in ("aligndet", "data"):
        for path in (ROOT / folder).rglob("*.py"):
            if '__name__ == "__main__"' in path.read_text(encoding="utf-8"):
                found.add(".".join(path.relative_to(ROOT).with_suffix("").parts))
    found |= {"pretrain", "finetune", "data.proposals"}
    assert found - ALIASES == listed()
