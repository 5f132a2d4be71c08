"""The calculation of docs/scale.md, against numbers worked out by hand."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import pytest
from torch import nn

from benchmarks.scale_plan import (
    PAPER_GPUS,
    SOURCES,
    STEP_SECONDS,
    Inputs,
    Run,
    default_inputs,
    gathered_bytes,
    main,
    paper_runs,
    plan,
    ring_bytes,
    similarities,
    trained_bytes,
)

INPUTS = Inputs(
    step_seconds=0.1,
    box_step_seconds=0.2,
    inference_seconds=0.05,
    scoring_seconds=36,
    start_seconds=72,
    link_inside=100e9,
    link_between=10e9,
    hidden=0.5,
    workers=4,
    view_rate=25,
    two_view_rate=10,
    price=2,
)
TUNING = Run("fine-tuning", "fine_tuning", 192_000, 3, 160_000_000)


def test_the_papers_eight_gpus():
    found = plan(TUNING, INPUTS, 8)
    assert (found.accumulate, found.batch, found.steps, found.rate_factor) == (1, 16, 12_000, 1)
    assert found.traffic_bytes == 280_000_000  # 2 x 7/8 x 160 MB
    assert found.traffic_seconds == pytest.approx(0.0028)
    assert found.exposed_seconds == found.loader_seconds == 0
    assert found.training_hours == pytest.approx(1200 / 3600)
    # 625 images per GPU take 31.25 s, then 36 s of scoring; three times.
    assert found.evaluation_hours == pytest.approx(201.75 / 3600)
    assert found.hours == pytest.approx((1200 + 201.75 + 72) / 3600)
    assert found.cost == pytest.approx(8 * 2 * 1473.75 / 3600)
    assert found.images_per_second == pytest.approx(20)
    assert found.workers == 1
    assert found.lost["evaluation"] == pytest.approx(201.75 / 1473.75)


def test_one_gpu_accumulates():
    found = plan(TUNING, INPUTS, 1)
    assert (found.accumulate, found.batch, found.steps) == (8, 16, 12_000)
    assert found.compute_seconds == pytest.approx(0.8)
    assert found.traffic_bytes == found.traffic_seconds == 0
    assert found.training_hours == pytest.approx(9600 / 3600)


def test_64_gpus_take_fewer_steps_at_a_higher_rate():
    found = plan(TUNING, INPUTS, 64)
    assert (found.accumulate, found.batch, found.steps, found.rate_factor) == (1, 128, 1500, 8)
    assert found.traffic_bytes == 315_000_000  # 2 x 63/64 x 160 MB
    assert found.traffic_seconds == pytest.approx(0.0028 + 0.028)  # among 8 GPUs, then 8 machines
    assert found.exposed_seconds == 0  # 50 ms are hidden
    slow = plan(TUNING, replace(INPUTS, link_between=1e9), 64)
    assert slow.exposed_seconds == pytest.approx(0.2828 - 0.05)
    assert slow.training_hours == pytest.approx(1500 * 0.3328 / 3600)
    assert slow.lost["gradients"] == pytest.approx(1500 * 0.2328 / 3600 / slow.hours)


def test_a_gpu_waits_for_a_slow_loader():
    run = Run("pre-training", "box_domain", 12 * 118_287, 0, 37_000_000, 2048)
    keeps_up = plan(run, INPUTS, 8)
    assert keeps_up.steps == 88_716  # 1,419,444 / 16, the last one not full
    assert keeps_up.workers == 1  # 10 images per second
    assert keeps_up.loader_seconds == 0
    late = plan(run, replace(INPUTS, workers=2, two_view_rate=2), 8)
    assert late.loader_seconds == pytest.approx(2 / (2 * 2) - 0.2)
    assert late.workers == 5
    assert late.lost["loader"] == pytest.approx(88_716 * 0.3 / 3600 / late.hours)


@pytest.mark.parametrize(("ranks", "sent"), [(1, 0), (2, 12), (3, 16), (4, 18)])
def test_a_ring(ranks, sent):
    """Each rank sends n - 1 of n parts, and then as many sums."""
    assert ring_bytes(12, ranks) == sent


def test_similarities_grow_with_the_ranks_that_are_contrasted():
    assert similarities(2048, 1) == 2048 * 4096
    assert similarities(3, 5) == 3 * 30
    assert gathered_bytes(2048, 1) == 0
    assert gathered_bytes(3, 5) == 6 * 4 * 256 * 4  # of four ranks, 256 numbers of 4 bytes each


def test_frozen_parameters_send_nothing():
    module = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 5).requires_grad_(False))
    assert trained_bytes(module) == (6 + 2) * 4


@pytest.mark.parametrize("detector", STEP_SECONDS)
def test_the_papers_runs(detector):
    box, short, long = paper_runs(detector, 2)
    assert short.images == 192_000
    assert long.images == 1_440_000
    queries = {"fcos": 2048, "retinanet": 4096, "faster_rcnn": 8192, "mask_rcnn": 8192}
    assert box.queries == queries[detector]
    # The stages of the backbone that train in fine-tuning, and no part of it in pre-training.
    assert short.gradient_bytes - box.gradient_bytes > 4 * 20_000_000
    assert default_inputs(detector).box_step_seconds > 0


def test_the_table_of_the_page():
    inputs = default_inputs("fcos")
    rows = []
    for run in paper_runs("fcos", inputs.images_per_gpu):
        for gpus in PAPER_GPUS:
            found = plan(run, inputs, gpus)
            name = run.name if gpus == 1 else ""
            batch = f"2 × {found.accumulate} batches" if found.accumulate > 1 else found.batch
            sent = f"{found.traffic_bytes / 1e6:.0f} MB" if gpus > 1 else "–"
            numbers = f"{found.hours:.2f} | {found.hours * gpus:.1f} | {found.cost:.0f} | {sent}"
            row = f"| {name} | {gpus} | {batch} | {found.steps:,} | {numbers} |"
            rows.append(row.replace("|  |", "| |"))
    page = (Path(__file__).parent.parent / "docs" / "scale.md").read_text(encoding="utf-8")
    page = page.partition("## The calculation")[2]
    assert [line for line in page.splitlines() if line.startswith("| ")][1:] == rows


def test_every_input_has_a_source():
    assert SOURCES.keys() == {field.name for field in fields(Inputs)}


def test_it_runs(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["scale_plan", "--step-seconds", "0.05", "--price", "1.5"])
    main()
    lines = capsys.readouterr().out.splitlines()
    given = [line.split()[0] for line in lines if line.endswith(" given")]
    assert given == ["--step-seconds", "--price"]
    rows = [line.split() for line in lines if line.split()[:1] == ["64"]]
    assert len(rows) == 3
    # 1,500 steps of 0.05 s, three evaluations of 5.8 + 80 s and the start are 392 s.
    expected = 1500 * 0.05 + 3 * (5000 / 64 * 0.074 + 80) + 60
    assert float(rows[1][4]) == pytest.approx(expected / 3600, abs=0.005)
