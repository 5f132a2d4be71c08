"""The code in docs/python.md runs, block after block, as a reader would paste it."""

from __future__ import annotations

import re
from pathlib import Path

import torch

PAGE = Path(__file__).resolve().parent.parent / "docs" / "python.md"


def blocks():
    """Each block's code, with its lines where they are on the page, for tracebacks."""
    text = PAGE.read_text(encoding="utf-8")
    for match in re.finditer(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        yield "\n" * text.count("\n", 0, match.start(1)) + match[1]


def test_every_block_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    code, names = list(blocks()), {"__name__": "page"}
    assert len(code) == PAGE.read_text(encoding="utf-8").count("```") // 2  # no block is left out
    for block in code:
        exec(compile(block, str(PAGE), "exec"), names)
    assert names["losses"].keys() >= {"loss_contrast", "loss_box"}
    assert names["found"].keys() == {"boxes", "scores", "labels"}
    assert names["saved"].detector.state_dict().keys() == names["detector"].state_dict().keys()
    assert names["boxes"].shape[1] == 4
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == len(names["found"]["scores"])
