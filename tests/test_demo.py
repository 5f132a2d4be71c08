"""The demo's report; test_scripts.py covers the commands it runs."""

from __future__ import annotations

import json

import pytest

from aligndet import demo


def test_table_shows_both_starts_and_the_gain(tmp_path):
    for name, ap in (("backbone", 10.04), ("aligndet", 12.5)):
        (tmp_path / name).mkdir()
        scores = {"AP": ap, "AP50": 2 * ap, "AP75": ap / 2}
        (tmp_path / name / "results.json").write_text(json.dumps(scores))
    rows = [line.split() for line in demo.table(tmp_path, "fcos").splitlines()]
    assert [row[-3:] for row in rows] == [
        ["AP", "AP50", "AP75"],
        ["10.0", "20.1", "5.0"],
        ["12.5", "25.0", "6.2"],
        ["+2.5", "+4.9", "+1.2"],
    ]


def test_a_failing_step_stops_the_demo():
    with pytest.raises(SystemExit) as stop:
        demo.command("-c", "raise SystemExit(3)")
    assert stop.value.code == 3
