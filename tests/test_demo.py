"""The demo's report; test_scripts.py covers the commands it runs."""

from __future__ import annotations

import json
from pathlib import Path

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


def test_length_adds_up_the_parts_of_a_run(tmp_path):
    (tmp_path / "config.yaml").write_text("output_dir: x\ndata: {batch_size: 4}\n")
    lines = [
        {"step": 20, "loss": 1.0, "images_per_second": 8.0},
        {"step": 20, "AP": 5.0},
        {"step": 30, "loss": 1.0, "images_per_second": 2.0},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert demo.length(tmp_path) == "30 steps of 4 pictures (30 s)"


@pytest.mark.parametrize(
    ("seed", "runs", "backbone"),
    [
        (0, "runs/demo_fcos", "runs/demo_image"),
        (2, "runs/demo_fcos_seed2", "runs/demo_image_seed2"),
    ],
)
def test_both_starts_have_one_recipe_and_one_backbone(monkeypatch, seed, runs, backbone):
    commands = []
    monkeypatch.setattr(demo, "command", lambda *arguments: commands.append(arguments))
    assert demo.train("fcos", seed) == Path(runs)
    image, pretrain, alone, aligndet = commands
    assert f"output_dir={backbone}" in image
    assert f"model.backbone_weights={backbone}/weights.pt" in pretrain
    assert all(f"seed={seed}" in command for command in commands)
    differing = {"--init", f"{runs}/pretrain/weights.pt", f"output_dir={runs}/aligndet"}
    assert set(aligndet) - set(alone) == differing
    assert set(alone) - set(aligndet) == {f"output_dir={runs}/backbone"}


def test_a_failing_step_stops_the_demo():
    with pytest.raises(SystemExit) as stop:
        demo.command("-c", "raise SystemExit(3)")
    assert stop.value.code == 3
